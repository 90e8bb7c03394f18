"""Train a smooth model by clipping its layers' singular values, and see what that does to forgetting.

python examples/clip_and_forget.py           # scikit-learn's digits, about a minute on two cores
"""

import expunge


def main(max_norm: float = 1.0, epochs: int = 25, n_forget: int = 100, n_retrained: int = 3) -> dict[str, expunge.Audit]:
    train, test = expunge.load_data("digits")
    build, split = expunge.architecture("small", train), expunge.forget_random(train, n=n_forget, seed=0)
    audits = {}
    for name, clip in {"plain": None, "clipped": expunge.Clip(max_norm=max_norm)}.items():
        # 1. Two models whose recipes differ in one argument. Clipping lowers the singular values above the bound, and leaves the others.
        recipe = expunge.Recipe(epochs=epochs, batch_size=64, weight_decay=0.0, clip=clip)
        model = expunge.train_model(build, train, recipe)

        # 2. How far can each layer, and how far can the network, stretch a change of the image?
        layers = expunge.spectrum(model, train.shape, composed=False)
        print(f"The {name} model, layer by layer:", layers, sep="\n", end="\n\n")

        # 3. Forget, with the bound kept, and compare with models that were retrained by the same recipe.
        unlearned = expunge.AMUN(epochs=5, batch_size=64, schedule=expunge.Step(every=2), clip=clip)(model, split)
        retrained = [expunge.Retrain(build=build, recipe=recipe)(model, split, seed=seed) for seed in range(1, n_retrained + 1)]
        audits[name] = expunge.audit(
            {"original": model, "unlearned": unlearned, "retrained": retrained}, split, test, spectra={"original": layers}
        )
        print(audits[name], end="\n\n")
    return audits


if __name__ == "__main__":
    main()
