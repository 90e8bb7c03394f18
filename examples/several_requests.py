"""Deletion requests that arrive one after another, each on the model that the last one left.

python examples/several_requests.py
"""

import torch

import expunge


def main(n_requests: int = 3, epochs: int = 20) -> list[float]:
    train, test = expunge.load_data("digits")
    build = expunge.architecture("small", train)
    model = expunge.train_model(build, train, expunge.Recipe(epochs=epochs, batch_size=64))
    requests = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: 20 * n_requests].split(20)

    # By default AMUN searches adversarial examples on the current model at each request; with one set for all of them, only once.
    once = expunge.NearestL2PGD()(model, train.subset(torch.cat(requests)))
    print(once)
    accuracies = []
    for method in (expunge.AMUN(epochs=3), expunge.AMUN(epochs=3, adversarial=once, transferred=True)):
        models = expunge.unlearn_sequentially(method, model, train, requests)
        for number, unlearned in enumerate(models):
            gone = train.subset(torch.cat(requests[: number + 1]))
            margin = expunge.logit_margin(expunge.logits_of(unlearned, gone), gone.labels).mean()
            accuracy = float((expunge.logits_of(unlearned, test).argmax(1) == test.labels).float().mean())
            accuracies.append(accuracy)
            print(f"after request {number + 1}: test accuracy {accuracy:.3f}, mean margin of what was forgotten {margin:.2f}")
    return accuracies


if __name__ == "__main__":
    main()
