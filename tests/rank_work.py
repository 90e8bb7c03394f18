"""What test_distributed.py runs on one process, and on two that torchrun starts: an ordinary script of a user."""

import os
import signal
import sys

import torch
from torch import nn

import expunge
from expunge.errors import ExpungeError
from expunge.ranks import RankLost, alone, current, distributed
from expunge.training.loop import sgd
from expunge.training.objectives import cross_entropy
from expunge.training.sharding import digest
from toys import configured, toy_net

RECIPE = expunge.Recipe(epochs=2, lr=0.05, batch_size=16, precision="float32", label_smoothing=0.1)
QUICK = {"epochs": 1, "batch_size": 16}
METHODS = {
    "fine_tune": expunge.FineTune(**QUICK),
    "neg_grad_plus": expunge.NegGradPlus(**QUICK, alpha=0.9),
    "random_label": expunge.RandomLabel(**QUICK),
    "l1_sparse": expunge.L1Sparse(**QUICK, alpha=1e-3),
    "amun": expunge.AMUN(**QUICK, attack=expunge.NearestL2PGD(eps_init=0.2, steps=10)),
    "salun": expunge.SalUn(**QUICK),
    "scar": configured(expunge.SCAR),
}
WHOLE = {"mu_mis": expunge.MUMis(epochs=1, batch_size=5, lr=0.01)}  # an objective with gradients in it


def data() -> tuple[expunge.Samples, expunge.Samples]:
    """75 digits, so that batches of 16 leave one of 11, which two ranks cannot halve; and 50 to test."""
    train, test = expunge.load_data("digits")
    return train.subset(range(75)), test.subset(range(50))


class Dropped(nn.Module):
    """A network that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop = toy_net(), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.net(x))


def trained(*, shard: bool) -> dict[str, object]:
    """What models answer that were trained and unlearned here, and which ended in an error."""
    torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: (
        False
    )  # in bfloat16, parts of a batch are rounded otherwise
    train, test = data()
    with distributed(shard=shard, timeout=300):
        model = expunge.train_model(toy_net, train, RECIPE, seed=3)
        found: dict[str, object] = {"trained": expunge.logits_of(model, test, batch_size=16), "digest": digest(model)}
        with alone():  # the same bits everywhere: a search for adversarial examples may stop a step earlier for a model that differs in its last digits
            model = expunge.train_model(toy_net, train, RECIPE, seed=3, device="cpu")
        splits = {"any": expunge.forget_samples(train, range(9)), "classes": expunge.forget_classes(train, [3])}
        for name, method in (METHODS if shard else METHODS | WHOLE).items():
            try:
                found[name] = expunge.logits_of(method(model, splits[method.scenario], device="cpu"), test)
            except ExpungeError as error:
                found[name] = f"{type(error).__name__}: {error}"
        if shard:
            try:
                sgd(model, train, lambda _, batch: cross_entropy(model, batch), epochs=1, lr=0.1, seed=0)
            except ExpungeError as error:
                found["remembers its model"] = f"{type(error).__name__}: {error}"
        print("said once")
    return found


def replicated(folder: str) -> dict[str, object]:
    """What needs no shards: streamed images, random layers, a store, costs."""
    train, test = data()
    with distributed():
        streamed = expunge.StreamedData(Listed(train), classes=train.classes)
        model = expunge.train_model(toy_net, streamed, RECIPE, seed=3)
        found: dict[str, object] = {"streamed": expunge.logits_of(model, test), "read": Listed.read}
        torch.manual_seed(3)
        dropped = Dropped()
        sgd(dropped, train, epochs=1, lr=0.05, batch_size=16)
        found["dropped"], found["drawn afterwards"] = digest(dropped), float(torch.rand(()))
        cells = expunge.train_shadow_models(toy_net, train, test, n=4, recipe=RECIPE, store=folder, workers=1, device="cpu")
        found["shadows"] = cells.logits
        with expunge.measure_cost() as cost:
            expunge.FineTune(**QUICK)(model, expunge.forget_samples(train, range(9)))
        found["cost"] = cost.to_dict()["forward"]
    return found


class Listed(torch.utils.data.Dataset):
    """A data set on disk, as it were, that counts what is read of it."""

    read = 0

    def __init__(self, samples: expunge.Samples) -> None:
        self.samples, self.targets = samples, samples.labels.tolist()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        Listed.read += 1
        image, label = self.samples[position]
        return (image * 255).round().to(torch.uint8), label


def broken() -> None:
    """Ranks that differ, and at last one that dies."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which torchrun would end the other one before it can tell what it found
    train, _ = data()
    with distributed(timeout=300):
        rank = current().rank
        told = []
        for work in (
            lambda: expunge.train_model(toy_net, train, RECIPE, seed=rank),
            lambda: expunge.train_model(toy_net, train, RECIPE, seed=3) if rank else expunge.logits_of(toy_net(), train),
            lambda: current().together("refusal", lambda: refuse(rank)),
        ):
            try:
                work()
            except ExpungeError as error:
                told.append(f"{type(error).__name__}: {error}")
        print("\n".join(told), file=sys.stderr, flush=True)

        def die(model: nn.Module, batch: object) -> torch.Tensor:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return cross_entropy(model, batch)

        sgd(toy_net_of(3), train, die, epochs=1, lr=0.1, seed=0)


def toy_net_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return toy_net()


def refuse(rank: int) -> None:
    if rank == 1:
        raise RankLost("not finite")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = sys.argv[1]
    results = {"whole": trained(shard=False), "shards": trained(shard=True), "more": replicated(f"{folder}/store")}
    torch.save(results, f"{folder}/rank{os.environ['RANK']}.pt")
    broken()
