"""Resolution of gin files and bindings to a run, with all checks made before any training starts.

Names and types of all bindings are checked first; then they are bound and the run is built. Mistakes that gin ignores
are errors here: a binding, a scope or a macro that the run never uses, a bare word, a missing included file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jestbench.config.arm_parameters import BUDGETS
from jestbench.config.build_run import build_run, place
from jestbench.config.fitting import TrainedOn, calibrated_on, calibration_warnings, data_warnings, other_loss
from jestbench.config.gin_edge import Binding
from jestbench.config.grammar import (
    COMMAND_LINE,
    IMPORTED,
    check_expanded,
    check_names,
    file_of,
    locate,
    missing_file,
    read_binding,
    read_file,
)
from jestbench.config.hand_over import handed_over, take_over
from jestbench.config.identity import arm_hash, identity_of
from jestbench.config.operative import check_used, flat_config
from jestbench.config.registered import policy_classes
from jestbench.config.registry import PRETRAINED, configurables
from jestbench.config.resolved import Inherited, Resolved
from jestbench.config.run import ConfigError, ReadFolder, Run
from jestbench.cost.budget import Pretrained
from jestbench.data.part_pairs import HALVES
from jestbench.disk import PROJECT, nearest, shown
from jestbench.engine.casting import Casting
from jestbench.parallel.arithmetic import number_format
from jestbench.select.remembering import check_needs, takes_all


def _check_augment(run: Run, bindings: Sequence[Binding]) -> None:
    """Refuse augmentation where scores of frozen models are stored: one crop's would be used for another."""
    if run.augment is not None and run.step_needs & PRETRAINED.keys() and run.reference_accounting != "online":
        raise ConfigError(
            f"{place('run.augment', bindings)}run.augment with run.reference_accounting = "
            f"{run.reference_accounting!r}: what is remembered of one crop would be asked about another; set "
            "run.reference_accounting = 'online' (each crop is scored and charged), or leave run.augment out"
        )


def resolve(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    beside: Path | None = None,
    chain: tuple[str, ...] = (),
    origin: str = COMMAND_LINE,
    recorded: ReadFolder | None = None,
    handed: Sequence[Binding] = (),
) -> Resolved:
    """Files and bindings → a run. Bindings win over files, later over earlier.

    The order matters, since gin's state is global and a frozen model's own run passes through it too:

    1. read and check names and types (an ``import`` registers policies); take over what the run above hands down;
    2. bind and build; what gin held then is a ``Snapshot``, and gin is empty again;
    3. check that all was used, and take the texts and the flat configuration, from the snapshot;
    4. resolve the frozen models, which are steps 1 to 5 of their own;
    5. hash the arm, by its own configuration and the identities of its frozen models.

    Args:
        bindings: ``Name.parameter=value``.
        allow_unused: patterns of bindings that the run need not use (``jest.*``).
        beside: the file that refers to ``files``, when a frozen model's run is resolved; paths are searched beside it.
        chain: run files being resolved, to refuse a circle.
        origin: where the bindings are written, for messages.
        recorded: reads a run folder that is bound in a role (``jestbench.runs.open_folder.recorded``).
        handed: what the run that stands on this one hands over.

    Raises:
        ConfigError: one paragraph, with file and line where there is one.
    """
    read = _read(files, bindings, beside, origin)
    read, inherited = take_over(read, Path(files[0]), len(bindings), handed) if handed else (read, Inherited())
    run, name, held = build_run(read)
    _check_augment(run, read)
    check_used(held, read, [*allow_unused, *(binding.key for binding in handed)])
    flat = flat_config(held)
    _check_objective(run, name, read)
    needs, whole = frozenset(run.built_policy.needs), takes_all(run.built_policy)
    stands_on = _stands_on(run, read, chain, recorded)
    warnings, split = _check_frozen(run, read, stands_on, recorded)
    imports = f"import {module}\n" if (module := type(run.policy).__module__) in IMPORTED else ""
    init_folder, format_used = _init_folder(run, read), number_format(run.device, run.precision)
    identities = _identities(run, stands_on, recorded, init_folder)
    return Resolved(
        *(run, name),
        config=imports + held.config,
        operative=imports + held.operative,
        flat=flat,
        config_hash=arm_hash(flat, needs, identities, format_used, whole=whole),
        frontier_hash=arm_hash(flat, needs, identities, format_used, BUDGETS, whole),
        stands_on=stands_on,
        warnings=warnings,
        inherited=inherited,
        calibrated_on=split,
        init_folder=init_folder,
    )


def _init_folder(run: Run, bindings: Sequence[Binding]) -> Path | None:
    """The folder that ``run.init`` names; ``ConfigError`` for none, or for a frozen tower that nothing trained."""
    if run.model.freeze and run.init is None and not run.model.pretrained:
        raise ConfigError(
            f"{place('model.freeze', bindings)}model.freeze = {run.model.freeze!r} keeps the weights of an image "
            "tower, and these are random: bind run.init, or set model.pretrained = True"
        )
    if not isinstance(run.init, str):
        return None
    bound = next(binding for binding in reversed(bindings) if binding.key == "run.init")
    path = locate(run.init, file_of(bound))
    if path is None or not path.is_dir():
        raise ConfigError(
            f"{bound.where}: run.init = {run.init!r}: no such run folder (a model of another library is bound as "
            "@open_clip() or @hugging_face_clip())"
        )
    return path


def _check_objective(run: Run, policy: str, bindings: Sequence[Binding]) -> None:
    """Refuse a policy that selects where a pair scorer is trained."""
    check_needs(run.built_policy)
    if run.built_policy.needs and not run.training.selects:
        raise ConfigError(
            f"{place('run.objective', bindings)}run.objective trains a pair scorer on all pairs of a batch, and the "
            f"policy {policy!r} selects: bind run.policy to uniform"
        )


def _identities(
    run: Run,
    stands_on: Mapping[Pretrained, tuple[Resolved | Path, ...]],
    recorded: ReadFolder | None,
    init_folder: Path | None,
) -> dict[str, str]:
    """Identities of the frozen models, by role, and of the start; without the seed of a reference given the arm's."""
    found: dict[str, str] = {}
    for role, stands in stands_on.items():
        seeded = role != "reference" or run.reference_seed == "shared"
        found[role] = "".join(identity_of(stand, recorded, seeded) for stand in stands)
    found |= {role: run.castings[role].identity for role in PRETRAINED if role in run.needs & run.castings.keys()}
    if isinstance(run.init, Casting):
        found["init"] = run.init.identity
    elif init_folder is not None:
        found["init"] = identity_of(init_folder, recorded)
    return found


def read_files(files: Sequence[str], beside: Path | None = None) -> Iterator[Binding]:
    """All bindings of files, in order; a policy that they import is registered.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    for file in files:
        path = locate(file, beside)
        if path is None or not path.is_file():
            raise missing_file(file, "", beside)
        yield from read_file(path)


def _read(files: Sequence[str], bindings: Sequence[str], beside: Path | None, origin: str) -> list[Binding]:
    """All bindings of files and command line, checked for names and types."""
    read = [*read_files(files, beside)]
    given = [read_binding(text, origin) for text in bindings]
    check_expanded(given)
    read += given
    check_names(read)
    return [_findable(binding) for binding in read]


def _stands_on(
    run: Run, bindings: Sequence[Binding], chain: tuple[str, ...], recorded: ReadFolder | None
) -> dict[Pretrained, tuple[Resolved | Path, ...]]:
    """The runs or folders whose models fill the roles that a run needs, by role; two where two halves score."""
    halves: dict[str, tuple[tuple[str, ...], ...]] = {}
    if _twinned(run):
        halves["reference"] = tuple((f"run.half={half}",) for half in HALVES)
    return {
        role: tuple(_pretrained(role, run, bindings, chain, recorded, half) for half in halves.get(role, ((),)))
        for role in _roles(run)
    }


def _findable(binding: Binding) -> Binding:
    """A frozen model's run by its full path where the project's folder does not find it.

    ``operative.gin`` lies elsewhere and must start the same run from any folder.
    """
    value = binding.value
    file, *more = value if isinstance(value, list | tuple) and value else (value,)
    if (
        binding.key not in {"run.init", *(f"run.{role}" for role in PRETRAINED)}
        or not isinstance(file, str)
        or not file
    ):
        return binding
    path = locate(file, file_of(binding))
    if path is None or path.resolve() == (PROJECT / file).resolve():
        return binding
    found = str(path.resolve())
    return dataclasses.replace(binding, value=(found, *more) if more else found)


def _roles(run: Run) -> list[Pretrained]:
    """The roles that other runs fill, to score or for ``budget.adds``; ``ConfigError`` for a scorer of another kind."""
    needs, name = run.built_policy.needs, type(run.policy).__name__
    if "online" in needs and "online" not in run.castings:
        bound = "" if run.scorer is None else f", not to {run.scorer!r}"
        raise ConfigError(
            f"the policy {name} needs a scorer trained beside the learner: bind run.scorer to @online_scorer()"
            f"{bound} (gin/policy/active_clip.gin)"
        )
    if "scorer" in run.needs and "online" in run.castings:
        who = f"the policy {name}" if "scorer" in needs else "cascade.score = 'scorer'"
        who = who if "scorer" in run.step_needs else f"run.split = {run.split!r}"
        raise ConfigError(
            f"{who} needs a pretrained scorer, not one trained beside the learner: bind run.scorer to a run file "
            f"({PRETRAINED['scorer'][0]})"
        )
    return [role for role in PRETRAINED if role in run.needs | set(run.limit.adds) and role not in run.castings]


def _twinned(run: Run) -> bool:
    """Whether two references score each other's half; ``ConfigError`` where the policy compares all pairs under one."""
    if not run.twin or "reference" not in run.built_policy.needs:
        return False
    if not run.built_policy.by_parts:
        can = ", ".join(name for name, cls in policy_classes().items() if cls.by_parts)
        raise ConfigError(
            f"run.twin scores by two references, but the policy {type(run.policy).__name__} compares all pairs under "
            f"one; these can be scored by two: {can}"
        )
    return True


def _pretrained(
    role: Pretrained,
    run: Run,
    bindings: Sequence[Binding],
    chain: tuple[str, ...],
    recorded: ReadFolder | None,
    half: tuple[str, ...],
) -> Resolved | Path:
    """The run that trains a frozen model (``half``: a twin's), or a finished one's folder; else ``ConfigError``."""
    key, asked = f"run.{role}", getattr(run, role)
    usual, kind = PRETRAINED[role]
    if not asked:
        who = f"the policy {type(run.policy).__name__}" if role in run.built_policy.needs else "run.cascade"
        who = who if role in run.step_needs else f"run.split = {run.split!r}"
        who = "budget.adds" if role in run.limit.adds else who
        raise ConfigError(
            f"{who} needs a {role}: bind {key} to a run file ({usual}) or to the folder of a finished run"
        )
    file, *more = (asked,) if isinstance(asked, str) else asked
    bound = next((b for b in reversed(bindings) if b.key == key), None)
    where = "" if bound is None else f"{bound.where}: "
    beside = None if bound is None else file_of(bound)
    path = locate(file, beside)
    if path is None:
        names = [
            *(one.name for one in (PROJECT / "gin/run").glob("*.gin")),
            *(one.name for one in Path(file).parent.glob("*")),
        ]
        hint = nearest(Path(file).name, names, "; did you mean {}?")
        raise ConfigError(f"{where}{key} = {file!r}: no such file or run folder{hint}")
    if path.is_dir() and half:
        raise ConfigError(
            f"{where}run.twin trains the reference twice, on two halves: bind run.reference to a run file, not to the "
            f"folder {file!r}"
        )
    if path.is_dir() and role == "reference" and run.reference_seed == "own":
        raise ConfigError(
            f"{where}run.reference_seed = 'own' trains the reference anew for each seed: bind run.reference to a run "
            f"file, not to the folder {file!r}"
        )
    if path.is_dir():
        return path
    if str(path) in chain:
        raise ConfigError(f"{where}{key} = {file!r} needs itself as a {role}")
    origin = key if bound is None else f"{key} at {bound.where}"
    handed = handed_over(run, bindings, role)
    try:
        found = resolve([str(path)], [*more, *half], (), beside, (*chain, str(path)), origin, recorded, handed)
    except ConfigError as error:
        size = f"; the arm hands over model.image_size = {run.model.image_size}: bind the {role}'s own, or another "
        size += f"model.patch_size, behind its file in {key}"
        raise ConfigError(f"{error} (in the {role} {shown(path)}){size if 'patch' in str(error) else ''}") from error
    if found.run.training.kind != kind:
        raise ConfigError(f"{where}{key} = {file!r} {found.run.training.does}: bind {key} to a run like {usual}")
    return found


def _check_frozen(
    run: Run,
    bindings: Sequence[Binding],
    stands_on: Mapping[Pretrained, tuple[Resolved | Path, ...]],
    recorded: ReadFolder | None,
) -> tuple[tuple[str, ...], str | None]:
    """What is doubtful about the frozen models that a run scores with; one that its budget adds is never run.

    Returns:
        Warnings, and the split that the reference is calibrated on.

    Raises:
        ConfigError: the reference was trained on another loss, and more than its cosines is used.
    """
    # Both halves of a twin come from one run file, so checking one of them is enough.
    models = [_training_of(run, role, stands[0], recorded) for role, stands in stands_on.items() if role in run.needs]
    where = place("run.loss", bindings).removesuffix(": ") or "the default"
    if refused := other_loss(run, models, where):
        raise ConfigError(place("run.reference", bindings) + refused)
    split = calibrated_on(run, models)
    names = {cls: name for name, cls in configurables().items()}
    return (*calibration_warnings(run, models, split), *data_warnings(run, models, names)), split


def _training_of(run: Run, role: Pretrained, stand: Resolved | Path, recorded: ReadFolder | None) -> TrainedOn:
    """What a frozen model of a run was trained on: by its own run, or as its folder records it."""
    if isinstance(stand, Resolved):
        asked, own = getattr(run, role), stand.run
        file = (asked,) if isinstance(asked, str) else tuple(asked)
        return TrainedOn(role, own.arm or file[0], own.training.loss(own), own, file=file)
    assert recorded is not None, "a run folder is resolved with a reader of run folders"
    read_back = recorded(stand)
    try:  # without the frozen models that it needs itself: they may be gone
        read = _read([str(read_back.operative)], (), None, COMMAND_LINE)
        found: Run | None = build_run(read)[0]
    except ConfigError:
        found = None
    file = (shown(read_back.operative),) if found is not None else ()
    return TrainedOn(role, shown(stand), read_back.loss, found, read_back.data, file)
