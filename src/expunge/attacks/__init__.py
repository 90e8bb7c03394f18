"""Attacks: searches for the nearest adversarial examples, and for adversarial examples within a radius. A new one is its own file and one line here."""

from .adversarial_set import AdversarialSet
from .auto_attack import AutoAttack
from .base import NearestAttack
from .bounded import Attacked, BoundedAttack, accuracy_within, robust_accuracy
from .nearest_ddn import NearestDDN
from .nearest_fgsm import NearestFGSM
from .nearest_l2_pgd import NearestL2PGD
from .pgd import PGD
from .transfer import Transfer, transfer

ATTACKS: dict[str, type[NearestAttack]] = {attack.name: attack for attack in (NearestDDN, NearestFGSM, NearestL2PGD)}
BOUNDED_ATTACKS: dict[str, type[BoundedAttack]] = {attack.name: attack for attack in (AutoAttack, PGD)}

__all__ = [
    "ATTACKS",
    "BOUNDED_ATTACKS",
    "PGD",
    "AdversarialSet",
    "Attacked",
    "AutoAttack",
    "BoundedAttack",
    "NearestAttack",
    "NearestDDN",
    "NearestFGSM",
    "NearestL2PGD",
    "Transfer",
    "accuracy_within",
    "robust_accuracy",
    "transfer",
]
