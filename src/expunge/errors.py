"""What can go wrong, and the health flags that say when a number should not be trusted.

    ExpungeError
    ├── ConfigError     a hyperparameter or option outside its range
    ├── DataError       images, labels, indices or a data folder that cannot be used
    ├── ModelError      a model whose outputs or weights do not fit
    ├── StoreError      a damaged, foreign or unwritable result
    └── MissingError    a name that does not exist (a method, a class, a file)

Every message has three parts: what was expected, what was given, and the remedy.
"""


class ExpungeError(Exception):
    """Any error that a user of expunge can cause and repair.

    Example:
        >>> import expunge
        >>> try:
        ...     expunge.Recipe(epochs=0)
        ... except expunge.ExpungeError as error:
        ...     print(error)
        Recipe: epochs must be an integer ≥ 1; got 0.
    """


class ConfigError(ExpungeError, ValueError):
    """A hyperparameter or option is outside its range."""


class DataError(ExpungeError, ValueError):
    """Images, labels or indices cannot be used as they are."""


class ModelError(ExpungeError, ValueError):
    """A model's outputs or weights do not fit the data or the task."""


class NotFinite(ModelError):
    """A loss, weights or logits are NaN or infinite: training diverged."""


class StoreError(ExpungeError):
    """A stored result is damaged, does not belong here, or cannot be written."""


class MissingError(ExpungeError, LookupError):
    """A name that does not exist: a method, an architecture, a class, a file."""


class HealthFlag(UserWarning):
    """A sign that a result may not mean what it seems to mean. Each flag has a section in docs/flags.md.

    Example:
        >>> import warnings, expunge
        >>> from expunge.errors import NondeterministicModel
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", expunge.HealthFlag)  # stop where a result would mean less than it seems to
        ...     try:
        ...         warnings.warn("answers differ", NondeterministicModel, stacklevel=1)
        ...     except expunge.HealthFlag as flag:
        ...         print(flag)
        answers differ
    """


class ProbabilitiesNotLogits(HealthFlag):
    """The model's outputs look like probabilities: rows are non-negative and sum to 1."""


class InputsOutsideUnitRange(HealthFlag):
    """Images lie outside [0, 1], so distances and bounds of adversarial examples do not hold."""


class NondeterministicModel(HealthFlag):
    """The same input gives different outputs in eval mode."""


class ZeroGradients(HealthFlag):
    """The gradient of the loss at the input is exactly zero for some samples: the attack is blind there."""


class AdversarialSearchFailed(HealthFlag):
    """No adversarial example was found for some samples within the allowed distance."""


class ClassNotGone(HealthFlag):
    """A method without retain data could not make the model stop answering with a forgotten class."""


class ModelNeverMemorised(HealthFlag):
    """The original model treats forget and test images alike: there is nothing to find."""


class TooFewNonMembers(HealthFlag):
    """Too few non-members to support the false-positive rate that is asked for."""


class TooFewTestImages(HealthFlag):
    """A remaining class has too few test images for MIA-NN, which says what models take a forgotten class for."""


class ShadowsUnlikeTarget(HealthFlag):
    """Shadow models and target differ in accuracy or recipe, so that their scores are not comparable."""


class WeakBeatsStrong(HealthFlag):
    """A loss threshold separates members better than LiRA or RMIA: the strong audit is mis-run."""


class RetrainDiffersAcrossSeeds(HealthFlag):
    """Retrained models disagree with one another more than sampling explains."""


class NoNullFloor(HealthFlag):
    """Fewer than two retrained models: the audit cannot say how large a gap is chance."""


class ControlUndetected(HealthFlag):
    """The audit does not see through its control, a model that was made to answer forget samples at random."""


class LabelsOnly(HealthFlag):
    """The audit saw predicted labels and no confidence: attacks that need it were not possible."""
