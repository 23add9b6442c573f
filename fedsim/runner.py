"""The loop: rounds one after the other, measured, recorded, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim import engines
from fedsim.asynchronous import Asynchronous
from fedsim.callbacks import Callback, Callbacks
from fedsim.check import Invalid
from fedsim.clock import Clock
from fedsim.course import Course
from fedsim.federation import Federation
from fedsim.layout import parameters
from fedsim.machine import malloc as heap
from fedsim.machine.mapped import Space
from fedsim.machine.threads import one_thread
from fedsim.metrics import GradientNorm, measured
from fedsim.personal import personal_metrics
from fedsim.pilot import chosen, under
from fedsim.progress import Live
from fedsim.prolong import Shorter
from fedsim.record import ANEW, Metrics, Record
from fedsim.result import Result
from fedsim.round import Seen
from fedsim.spec import Experiment
from fedsim.standing import Standing
from fedsim.states import States
from fedsim.stationary import gradient_norm
from fedsim.task import evaluate
from fedsim.types import Dataset, weighted_mean

SAVE_SECONDS = 10.0  # a killed run loses at most about so much work, or where checkpoints take long
SAVE_SHARE = 0.04  # as much as keeps them to this share of the time,
DISK = 250e6  # at so many bytes a second until one has been timed
KEPT = 2**30  # bytes of clients' states that a finished run leaves for a longer one
LISTED = 50  # clients whose weights are recorded one by one

Progress = Callable[[int, Metrics], None]
Run = Standing | Course


@one_thread()
def run(
    experiment: Experiment,
    *,
    engine: str = "vector",
    device: str = "auto",
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback | Callable[[Metrics], object]] = (),
    dataset: Dataset | None = None,
    memory: float = heap.MEMORY,
    start: Path | str | None = None,
    keep: bool = True,
) -> Result:
    """Run an experiment to its last round; with `out`, leave a record there, and go on from it with `resume`.

    `progress(round, metrics)` is called after every round with the newest metrics; True draws a bar. `callbacks` are
    called after each evaluation, and may stop the run. `dataset` stands in for the task's own, already loaded. What
    clients keep and the rows of a round take up to `memory` GiB, beyond that they lie in files. `start` is the folder
    of a finished run of the same experiment with fewer rounds, to go on from; for that `keep` leaves the clients'
    states, up to 1 GiB, in the record of a finished run. Raises `Invalid` for what cannot work; KeyboardInterrupt
    leaves a checkpoint.
    """
    engines.require(engine, experiment)  # before anything is left behind
    space = Space(memory, Path(out) if out is not None else None)
    before = Shorter.of(experiment, Path(start)) if start is not None else None
    if before:
        before.require(experiment)
    fed = Federation(experiment, choose(device), dataset, space)
    record = Record.open(experiment, Path(out), resume) if out is not None else None
    if before and record and not (record.folder / "checkpoint.pt").exists():
        before.hand_over(record, experiment.evaluate_every)
    told = Callbacks(callbacks)
    with ExitStack() as until_done:
        bar = Live("run", experiment.rounds) if progress is True else progress or None
        if isinstance(bar, Live):
            until_done.enter_context(bar)
        return engines.hosted(
            engine, fed, lambda ask: drive(fed, ask, record, bar, keep=keep, callbacks=told)
        )


@one_thread()
@heap.kept()
def drive(
    fed: Federation,
    ask: engines.Ask,
    record: Record | None = None,
    progress: Progress | None = None,
    save_seconds: float = SAVE_SECONDS,
    keep: bool = False,
    callbacks: Callbacks | None = None,
) -> Result:
    """The rounds of a federation with whoever answers, from the record's checkpoint on where it has one."""
    experiment, live, told = fed.experiment, _start(fed, ask, record), callbacks or Callbacks()
    saver = record and _Saver(record, save_seconds)
    try:
        lines = record.metrics() if record else []
        began, begun_at = time.perf_counter(), live.round
        spent_before = lines[-1]["seconds"] if lines else 0.0
        acting = _acting(fed, live)
        with told.during(experiment, lines):
            if record and live.goes_on(fed) and not told.stopped:
                record.reopen()
            while live.goes_on(fed) and not told.stopped:
                before, at = live.server.previous, live.round
                now = _rehearsed(fed, live, ask, progress or _unheard)
                acting = acting if now is live else _acting(fed, now)
                with live.whole() as stop:
                    after, seen = _advance(now, acting, ask, stop)
                    last = not after.goes_on(fed) and (not lines or lines[-1]["round"] < after.round)
                    if evaluated := (after.round > at and fed.evaluated(at)) or last:
                        seconds = round(spent_before + time.perf_counter() - began, 3)
                        lines.append(
                            _measure(after, acting, seen, before) | ask.metrics | {"seconds": seconds}
                        )
                        after = _written(after, record, lines[-1])
                    live = after  # not before: an interrupt saves a round only together with its line
                (progress or _unheard)(live.round, lines[-1] if lines else {})
                if evaluated:
                    told.tell(lines[-1])
                if saver and saver.due(live):
                    saver.save(live)
    except KeyboardInterrupt:
        if saver and not live.torn:
            saver.save(live)
        raise
    else:
        seconds = time.perf_counter() - began
        stopped = told.stopped if live.goes_on(fed) else []
        keep = bool(stopped) or (keep and live.states.size <= KEPT)  # a stopped run may go on after all
        if saver and (live.round > begun_at or not saver.record.finished):
            saver.save(live, keep)
    finally:
        live.states.close()
    done = live.round - begun_at
    result = _result(fed, live, lines, done / seconds if done else 0.0, stopped)
    if record is None:
        return result
    if done or not record.finished:
        record.save_notes(live.notes(fed, stopped))
        record.save_result(result.summary, asdict(fed.signature))
        record.save_model(result.model, keep)
    return replace(result, summary=result.summary | {"out": str(record.folder)})


def _result(fed: Federation, live: Run, lines: list[Metrics], speed: float, stopped: list[str]) -> Result:
    import pandas as pd  # slow to import, and of no use before

    return Result(
        fed.experiment,
        pd.DataFrame(lines),
        {name: value.cpu().clone() for name, value in parameters(live.x(fed), fed.model).items()},
        _summary(fed, live, lines[-1], speed, stopped),
        fed.signature,
        [*live.notes(fed, stopped), *_diverged(lines)],
    )


def choose(device: str) -> str:
    """The device by name; "auto" is a GPU where torch sees one, otherwise the CPU. Raises `Invalid`.

    From here on a GPU's convolutions keep the digits of float32, as its products do unless told otherwise: the engines
    must agree.
    """
    torch.backends.cudnn.allow_tf32 = False
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Invalid(f"device = {device!r}: not at hand here ({str(error).splitlines()[0]})") from None
    return device


class _Saver:
    """Writes checkpoints: every so many seconds, less often where one takes long."""

    def __init__(self, record: Record, seconds: float) -> None:
        self.record, self.seconds, self.at, self.took = record, seconds, time.perf_counter(), 0.0

    def due(self, live: Run) -> bool:
        took = max(self.took, live.states.unsaved / DISK)
        return time.perf_counter() - self.at >= (self.seconds and max(self.seconds, took / SAVE_SHARE))

    def save(self, live: Run, rows: bool = True) -> None:
        """Also the clients' rows, without which a run does not go on."""
        began = time.perf_counter()
        if not rows:
            self.record.save(live.dump())
            return
        with live.states.saving() as table:
            self.record.save(live.dump() | {"rows": table})
        self.at = time.perf_counter()
        self.took = self.at - began


def _start(fed: Federation, ask: engines.Ask, record: Record | None) -> Run:
    """Before the first round, or at the record's checkpoint; raises `Invalid` where the clock's horizon is before."""
    first, saved = ask.first(fed), record.checkpoint() if record else None
    clients = ask.attempts(fed) if isinstance(fed.experiment.method, Asynchronous) else None
    if record is None or saved is None:
        file = record.states if record else None
        begun = Course.start(fed, first, file, clients) if clients else Standing.start(fed, first, file)
        if isinstance(fed.experiment.clock, Clock) and not begun.goes_on(fed):
            raise Invalid(
                f"clock.horizon = {fed.experiment.clock.horizon}: the first message comes later; allow more"
            )
        return begun
    states = States.start(first, fed.computing, space=fed.space, file=record.states, saved=saved.get("rows"))
    try:
        return Course.at(fed, saved, states, clients) if clients else Standing.at(fed, saved, states)
    except (KeyError, TypeError) as error:
        states.close()
        raise Invalid(
            f"{record.folder / 'checkpoint.pt'}: a checkpoint of another version of fedsim ({error}); {ANEW}"
        ) from None


def _unheard(round: int, metrics: Metrics) -> None:
    """The progress of a run that shows none."""


def _written(live: Run, record: Record | None, line: Metrics) -> Run:
    """The same with a line of the record."""
    return live.at_line(record.append(line)) if record else live


def _rehearsed(fed: Federation, live: Run, ask: engines.Ask, progress: Progress) -> Run:
    """The same with the member of the attack that pilot runs have chosen, where they are due."""
    attack, rounds = fed.experiment.attack, fed.experiment.rounds
    pilot = attack.rehearse(live.round, rounds) if attack and isinstance(live, Standing) else None
    if pilot is None or not isinstance(live, Standing):
        return live
    if not isinstance(ask, engines.Everyone):
        raise Invalid(
            f"attack = {type(attack).__name__}: what clients keep lies on their nodes, so that no pilot can go on from "
            "there; allowed is the engine loop, vector or grid, or one of its members"
        )
    member = chosen(fed, live, pilot, lambda done: progress(live.round, {"pilot": done}))
    memory = live.server.memory if member == live.member else {}
    return replace(live, member=member, server=replace(live.server, memory=memory))


def _acting(fed: Federation, live: Run) -> Federation:
    """The federation under the attack that was chosen."""
    attack = fed.experiment.attack
    if attack is None or not isinstance(live, Standing) or live.member is None:
        return fed
    return under(fed, attack.member(live.member))


def _advance(now: Run, fed: Federation, ask: engines.Ask, stop: list[bool]) -> tuple[Run, Seen | None]:
    """The next round; None where too few answered, or it is to stop before."""
    if isinstance(now, Course):
        return now.advance(fed, ask, stop)
    asked = now.asked(fed)
    states, messages, answered = ask(fed, now.states.of(asked), now.told(fed), now.round, asked)
    return now.after(fed, states, messages, answered)


def _measure(live: Run, fed: Federation, seen: Seen | None, before: Tensor | None) -> Metrics:
    """Accuracy and loss on the test set, epsilon spent, and what the rule made of what it saw.

    deviation: how far the aggregate lies from the honest mean. byzantine_weight: that of the Byzantine rows in it,
    where the rule can say (`influence`); their number over n for the plain mean, 0 where all were filtered. weights:
    of each client, where all took part and they are at most 50. clipped: the share of honest messages that the
    method's clip of messages has shortened. backdoor_success: the share of triggered test examples that are told as the
    adversary wants. simulated_seconds: on the experiment's clock. uplink_bits, downlink_bits: that a client sent and
    was told so far, headers aside. w_loss, w_accuracy: of the model that clients hold, where that is another.
    diverged: only where `has_diverged`, and then true. personal_*: of clients' own models, where they have some.
    member: the place of the attack that pilot runs chose.
    """
    metrics: Metrics = {"round": live.round, **evaluate(fed.model, fed.loss, live.x(fed), fed.test)}
    metrics |= personal_metrics(fed, live.states, live.x(fed))
    metrics |= measured(fed.experiment.task.metrics, fed.model, live.x(fed), fed.test, fed.about)
    if any(isinstance(metric, GradientNorm) for metric in fed.experiment.task.metrics):
        metrics["gradient_norm"] = gradient_norm(fed, live.x(fed))
    if fed.triggered is not None:
        shown = evaluate(fed.model, fed.loss, live.x(fed), fed.triggered)
        metrics |= {"backdoor_success": shown["accuracy"]} if "accuracy" in shown else {}
    if seen:
        honest = weighted_mean(
            seen.rows[: seen.honest], None if seen.weights is None else seen.weights[: seen.honest]
        )
        metrics |= {"deviation": float((seen.aggregate - honest).norm()), "honest_norm": float(honest.norm())}
        if seen.clipped is not None:
            metrics["clipped"] = seen.clipped
        metrics |= _weights(fed, seen, before, live.round - 1)
    metrics |= live.traffic(fed)
    if isinstance(live, Standing) and live.member is not None:
        metrics["member"] = live.member
    told = fed.experiment.method.sends
    if told != "x" and isinstance(
        live, Standing
    ):  # clients hold another model than the one that is evaluated
        held = evaluate(fed.model, fed.loss, live.told(fed)[told], fed.test)
        metrics |= {f"{told}_{name}": value for name, value in held.items()}
    if fed.experiment.clock:
        metrics["simulated_seconds"] = live.seconds
    if has_diverged(metrics, fed.classes):
        metrics["diverged"] = True
    if live.ledger:
        metrics["epsilon"] = live.ledger.epsilon
    return {k: v if isinstance(v, list) or math.isfinite(v) else None for k, v in metrics.items()}


def has_diverged(metrics: Metrics, classes: int) -> bool:
    """Whether a model is of no use any more: a loss that is not finite, or worse than a guess twice as bad as chance.

    That is an accuracy of at most 1.5 / classes at a loss above 2 ln(classes). A run that has learned nothing yet has a
    loss of about ln(classes).
    """
    loss, accuracy = metrics["loss"], metrics.get("accuracy")
    if loss is None or not math.isfinite(loss):
        return True
    by_chance = classes > 1 and accuracy is not None and accuracy <= 1.5 / classes
    return bool(by_chance and loss > 2 * math.log(classes))


def _diverged(lines: list[Metrics]) -> list[str]:
    """What is to be said of a run that ends diverged."""
    if not lines[-1].get("diverged"):
        return []
    first = next(line for line in reversed([{}, *lines]) if not line.get("diverged"))
    begun = lines[lines.index(first) + 1] if first else lines[0]
    accuracy, loss = lines[-1].get("accuracy"), lines[-1]["loss"]
    shown = f"a loss of {loss:.3g}" if loss is not None else "a loss that is not finite"
    at = f"accuracy {accuracy:.1%} and " if accuracy is not None else ""
    return [
        f"diverged: {at}{shown} at the end, from round {begun['round']} on; a smaller step, or a rule that the attack "
        "does not move, may help"
    ]


def _weights(fed: Federation, seen: Seen, before: Tensor | None, round: int) -> Metrics:
    rule = fed.rule
    if not fed.experiment.byzantine or fed.experiment.method.peer:
        return {}
    generator = torch.Generator(fed.device).manual_seed(fed.rule_seed(round))
    weight = seen.weights
    if seen.recalled:
        weight = seen.recalled.influence(generator)
    elif weight is None and hasattr(rule, "influence"):
        weight = rule.influence(seen.rows, fed.experiment.f_round, previous=before, generator=generator)
    if weight is None:
        return {}
    metrics: Metrics = {"byzantine_weight": float(weight[seen.honest :].sum())}
    if len(weight) == fed.experiment.clients <= LISTED:
        metrics["weights"] = weight.cpu().numpy().round(4).tolist()
    return metrics


def _summary(fed: Federation, live: Run, last: Metrics, speed: float, stopped: list[str]) -> dict[str, Any]:
    privacy, ledger = fed.experiment.privacy, live.promised(fed, bool(stopped))
    return {
        "accuracy": last.get("accuracy"),
        "loss": last["loss"],
        "rounds": last["round"],
        "epsilon": (ledger.epsilon if ledger else None) if stopped else last.get("epsilon"),
        "delta": privacy.delta if privacy else None,
        "noise_multiplier": fed.ledger.multiplier if fed.ledger else None,
        "seconds": last["seconds"],
        "rounds_per_second": round(speed, 3),
        "fingerprint": fed.experiment.fingerprint,
        "diverged": bool(last.get("diverged")),
        "stopped": ", ".join(stopped),
        "out": None,
    }
