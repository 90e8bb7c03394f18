"""Recipes by name, and the schedules that they need."""

import inspect
import json

import pytest
import torch

import expunge
from expunge.errors import ConfigError, MissingError
from expunge.settings import configured, value_of
from expunge.store import plain, rebuild
from expunge.training.recipe import Recipe, train_model
from expunge.training.recipes import RECIPES, recipe
from expunge.training.schedules import SCHEDULES, Constant, Cosine, MultiStep, Schedule, Step, Triangular
from toys import toy_net


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_its_paper_and_its_departures(name):
    text = inspect.getdoc(RECIPES[name])
    assert "\nPaper: " in text and "\nDepartures: " in text
    assert str(recipe(name).epochs) in text.split("\n")[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json(name):
    made = recipe(name)
    known = {cls.__name__: cls for cls in (Recipe, *SCHEDULES.values())}
    assert rebuild(json.loads(json.dumps(plain(made))), known) == made


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_digits(name, digits):
    """Each with its own step size, momentum and schedule; epochs and batches for a set of 300 images instead of 50,000."""
    changed = {"amun": {"schedule": Step(every=6)}, "salun": {"schedule": MultiStep(milestones=(6, 9))}}.get(name, {})
    train = digits[0].subset(range(300))
    model = train_model(toy_net, train, recipe(name, epochs=12, batch_size=16, precision="float32", **changed), device="cpu")
    right = expunge.logits_of(model, train).argmax(1) == train.labels
    assert right.double().mean() > 0.5


def test_changes_of_a_recipe_are_checked_and_the_rest_stays():
    assert recipe("amun", epochs=161) == Recipe(epochs=161, schedule=Step(every=40))
    assert recipe("amun").epochs == 200
    with pytest.raises(ConfigError, match="epochs must be an integer ≥ 1; got 0"):
        recipe("amun", epochs=0)
    with pytest.raises(MissingError, match="no setting of Recipe named 'epoch'; did you mean 'epochs'"):
        recipe("amun", epoch=1)
    with pytest.raises(MissingError, match="no recipe named 'amnu'; did you mean 'amun'"):
        recipe("amnu")


def test_a_recipe_is_a_setting_in_text():
    assert value_of("salun", Recipe) == recipe("salun")
    assert value_of("amun:epochs=161,batch_size=256", Recipe) == recipe("amun", epochs=161, batch_size=256)
    assert configured(expunge.Retrain, ["recipe=amun"], {"build": toy_net}).recipe == recipe("amun")


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("multi_step:milestones=91,136,gamma=0.5", MultiStep(milestones=(91, 136), gamma=0.5)),
        ("multi_step:gamma=0.5,milestones=91,136", MultiStep(milestones=(91, 136), gamma=0.5)),
        ("multi_step:milestones=3", MultiStep(milestones=(3,))),
        ("triangular:peak=0.25,end=0.1", Triangular(peak=0.25, end=0.1)),
        ("step:every=2,", Step(every=2)),
    ],
)
def test_a_schedule_is_a_setting_in_text(text, schedule):
    assert value_of(text, Schedule) == schedule


@pytest.mark.parametrize("milestones", [(), (5, 3), (3, 3), (0, 2), (1.5,), (True,)])
def test_milestones_that_do_not_ascend_are_refused(milestones):
    with pytest.raises(ConfigError, match="ascending integers ≥ 1"):
        MultiStep(milestones=milestones)


def test_milestones_are_those_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], 0.1)
    for epoch in range(8):
        assert MultiStep(milestones=(3, 5))(float(epoch), 8) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_milestones_at_equal_distances_are_steps():
    for done in torch.linspace(0, 12, 50).tolist():
        assert MultiStep(milestones=(4, 8, 12))(done, 20) == pytest.approx(Step(every=4)(done, 20))


def test_a_triangle_goes_through_its_three_corners_in_straight_lines():
    schedule = Triangular(peak=0.25, start=0.2, end=0.1)
    assert [schedule(done, 8) for done in (0, 2, 8)] == pytest.approx([0.2, 1.0, 0.1])
    assert [schedule(done, 8) for done in (1, 5)] == pytest.approx([0.6, 0.55])


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), MultiStep(milestones=(2, 4)), Step(every=2), Triangular(start=0.5)])
def test_every_schedule_stays_between_zero_and_one(schedule):
    assert all(0 <= schedule(done, 6) <= 1 for done in torch.linspace(0, 6, 100).tolist())
