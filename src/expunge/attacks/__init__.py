"""Attacks: searches for adversarial examples. A new one is its own file and one line here."""

from .adversarial_set import AdversarialSet
from .base import NearestAttack
from .nearest_ddn import NearestDDN
from .nearest_fgsm import NearestFGSM
from .nearest_l2_pgd import NearestL2PGD

ATTACKS: dict[str, type[NearestAttack]] = {attack.name: attack for attack in (NearestDDN, NearestFGSM, NearestL2PGD)}

__all__ = ["ATTACKS", "AdversarialSet", "NearestAttack", "NearestDDN", "NearestFGSM", "NearestL2PGD"]
