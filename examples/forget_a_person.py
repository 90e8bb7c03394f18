"""Remove a person from a face classifier in three ways, and compare each with a classifier that never saw that person.

python examples/forget_a_person.py --root orl_faces                   # train/PERSON/… and test/PERSON/…; about 20 s on one core
python examples/forget_a_person.py --root VGGFace2/train --n-test 50  # PERSON/…, of whose photos 50 each are held out
"""

import argparse
import time

import expunge


def main(
    root: str, person: str | None = None, n_test: int | None = None, side: int = 32, epochs: int = 30, n_retrained: int = 2
) -> expunge.Audit:
    # 1. One class a person. A mirrored face is the same face.
    train, test = expunge.load_data(root, size=(side, side), n_test=n_test, augment=expunge.Augment(pad=2, flip=True))
    build, recipe = expunge.architecture("small", train), expunge.Recipe(epochs=epochs, batch_size=32)
    model = expunge.train_model(build, train, recipe)

    # 2. All photos of this person must go.
    person = person or train.classes[0]
    split = expunge.forget_classes(train, [person])

    # 3. Boundary methods see the photos that go, and no others: they take the smallest step after which the class is gone, and lose much of the rest with it. TRW goes
    # on training on the rest too.
    methods = {
        "boundary shrink": expunge.BoundaryShrink(),
        "boundary expanding": expunge.BoundaryExpanding(),
        "TRW": expunge.TRW(batch_size=32),
    }
    retrain = expunge.Retrain(build=build, recipe=recipe)
    models, seconds = {"original": model}, {}
    for name, method in methods.items():
        start = time.perf_counter()
        models[name] = method(model, split)
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    models["retrained"] = [retrain(model, split, seed=seed) for seed in range(1, n_retrained + 1)]
    seconds["retrained"] = (time.perf_counter() - start) / n_retrained

    title = f"{person} must leave a classifier of {len(train.classes)} people"
    audit = expunge.audit(models, split, test, seconds=seconds, title=title)
    print(title, audit, sep="\n\n")
    print("\nSeconds: " + ", ".join(f"{name} {s:.2f}" for name, s in seconds.items()))
    return audit


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder of photos, one folder a person")
    parser.add_argument("--person", help="the name of the person's folder; default: the first")
    parser.add_argument("--n-test", type=int, help="photos of each person to hold out, where root has no train/ and test/")
    main(**vars(parser.parse_args()))
