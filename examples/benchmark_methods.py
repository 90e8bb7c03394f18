"""Compare five methods on equal terms: the same originals, forget set and audit, and as many trials of the step size for each.

python examples/benchmark_methods.py         # scikit-learn's digits, about a minute on two cores; a second run reads what is there
"""

import sys

import expunge


def main(
    store: str = "runs",
    seeds: int = 3,
    shadows: int = 8,
    tuning: int = 2,
    epochs: int = 15,
    n_train: int | None = None,
    workers: int | str = "auto",
):
    # 1. The question, as one value. `data` may be a pair of your own data sets, `arch` a function of yours that builds your model.
    plan = expunge.Plan(
        title="Five methods, a tenth of the digits",
        data="digits",
        arch="small",
        recipe=expunge.Recipe(epochs=epochs, batch_size=64, weight_decay=0.0),
        forget=expunge.ForgetRandom(ratio=0.1),
        n_train=n_train,  # None = all
        methods={
            "fine-tuning": expunge.FineTune(epochs=5, batch_size=64),
            "random labels": expunge.RandomLabel(epochs=5, batch_size=64),
            "SalUn": expunge.SalUn(epochs=5, batch_size=64),
            "AMUN": expunge.AMUN(epochs=5, batch_size=64),
            "AMUN without retain data": expunge.AMUN(epochs=5, batch_size=64, use_retain=False),
        },
        seeds=seeds,  # originals; intervals are over them
        shadows=shadows,
        tuning=tuning,  # without a look at the retrained models
    )

    # 2. How much there is to do, and the work: interrupt it whenever you like, the same call goes on.
    print(plan.status(store), end="\n\n")
    results = plan.run(store, workers=workers)

    # 3. The average gap to retraining, smallest first, beside the floor: the gap between models that are both retrained.
    print(results)
    return results


if __name__ == "__main__":
    main(*sys.argv[1:]).to_html("benchmark.html")
