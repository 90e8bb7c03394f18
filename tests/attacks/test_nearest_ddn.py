"""DDN against closed forms and against PGD."""

from dataclasses import replace

from expunge.attacks import NearestDDN


def test_linear_model_is_crossed_near_the_closed_form(linear_case):
    exact, adversarial = linear_case(NearestDDN(steps=200, init_norm=0.1, gamma=0.02), n_classes=4)
    assert adversarial.found.all()
    assert (adversarial.distances >= exact * (1 - 1e-4)).all()
    assert (adversarial.distances / exact - 1).median() < 0.03


def test_is_nearer_than_pgd_on_average(trained, some, pgd_set):
    ddn = NearestDDN()(trained, some)
    assert ddn.found.all()
    assert ddn.distances.mean() < pgd_set.distances.mean()


def test_more_steps_do_not_lengthen_the_distance(trained, some):
    few, many = NearestDDN(steps=15)(trained, some), NearestDDN(steps=100)(trained, some)
    assert many.distances.mean() < few.distances.mean()


def test_every_sample_costs_steps_and_two_looks(trained, some):
    adversarial = replace(NearestDDN(), steps=7)(trained, some.subset(range(20)))
    assert (adversarial.forward_passes == 7 + 2).all()
