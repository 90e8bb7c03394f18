"""Forget a few training images of a trained model, and audit the result against retraining.

python examples/forget_samples.py            # scikit-learn's digits, about a minute on two cores
"""

import sys

import expunge


def main(store: str = "runs", n_shadows: int = 16, epochs: int = 25) -> expunge.Audit:
    # 1. A model, trained on everything. Yours may come from anywhere; it maps images in [0, 1] to logits.
    train, test = expunge.load_data("digits")
    build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=epochs, batch_size=64)
    model = expunge.train_model(build, train, recipe, seed=0)

    # 2. These images must go.
    split = expunge.forget_random(train, n=100, seed=0)  # or forget_samples(train, [17, 42, 4711])
    unlearned = expunge.AMUN(epochs=5)(model, split, seed=0)

    # 3. The yardstick (two of them, so that chance can be told from a gap), and shadow models for the strong attacks.
    retrain = expunge.Retrain(build=build, recipe=recipe)
    retrained = [retrain(model, split, seed=seed) for seed in (1, 2)]
    shadows = expunge.train_shadow_models(build, train, test, n=n_shadows, recipe=recipe, store=store)

    audit = expunge.audit({"original": model, "unlearned": unlearned, "retrained": retrained}, split, test, shadows=shadows)
    print(audit)
    return audit


if __name__ == "__main__":
    main(*sys.argv[1:]).to_html("audit.html")
