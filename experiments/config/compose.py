"""Composes configs with Hydra and hands on plain data; the only file that imports hydra and omegaconf.

Group choices (`sampler=halton`) select files and are composed once per distinct set; value overrides (`train.lr=1e-4`)
are applied to the plain result and checked (`checker.py`), so that a typo is answered with the nearest name and a sweep
of a thousand points costs one composition.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.config.file_checks import check_files, check_size
from experiments.config.schema.signatures import source_file
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, suggestion, unknown_name

CONF = Path(__file__).resolve().parents[2] / "conf"
#: Points of a sweep, and values of one of its axes, at most.
MAX_POINTS = 10_000
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


@dataclass(frozen=True)
class Overrides:
    """A command line, sorted: what selects files, what sets values, what sweeps."""

    choices: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, object], ...]
    removed: tuple[str, ...]
    sweeps: tuple[tuple[str, tuple[object, ...]], ...]

    def choice(self, group: str) -> str | None:
        """The file chosen for a group, if any."""
        return dict(self.choices).get(group)


def group_names(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The files of a config group, as they are written on the command line."""
    names = set()
    for place in (CONF, *config_dirs):
        root = place / group
        names |= {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")}
    return sorted(names)


def groups(config_dirs: Sequence[Path] = ()) -> list[str]:
    """The config groups there are; sweeps, stages and tables are read by their own code, not composed."""
    names = {p.name for place in (CONF, *config_dirs) if place.is_dir() for p in place.iterdir() if p.is_dir()}
    return sorted(names - {"sweep", "stage", "table"})


def check_choice(group: str, name: str, config_dirs: Sequence[Path] = ()) -> None:
    """Refuses a name that is no file of the group or tries to leave its folder."""
    if not NAME.fullmatch(name) or ".." in name.split("/"):
        raise ConfigError(f"{group}: {name!r} is not a name; names are letters, digits, '_', '-', '.' and '/' inside")
    if name not in (names := group_names(group, config_dirs)):
        raise unknown_name(group, name, names, group)


def parse(arguments: Sequence[str], config_dirs: Sequence[Path] = ()) -> Overrides:
    """Sorts `key=value` arguments (Hydra's override grammar).

    Raises:
        ConfigError: not `key=value`, or a group's file that does not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    known = set(groups(config_dirs))
    choices, values, removed, sweeps = [], [], [], []
    for argument in with_experiment(arguments, config_dirs):
        try:
            override = parser.parse_override(argument)
        except (HydraException, ValueError, RecursionError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(f"{_short(argument)}: cannot be read ({said}); quote special characters") from None
        key = override.get_key_element().lstrip("+~")
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", argument):
            raise ConfigError(f"{key}: found {_short(repr(argument))}; it must be without control characters")
        if key.split(".")[0].split("/")[0] == "hydra":
            raise ConfigError(
                f"{key}: Hydra's own settings have no effect here; outputs are in paths.store, launchers are chosen "
                "with launcher=NAME"
            )
        if override.is_delete():
            removed.append(key)
        elif override.is_sweep_override():
            if key == "experiment":
                raise ConfigError(f"{argument}: one experiment at a time; run the command once for each")
            items = tuple(_sweep_values(override, argument, config_dirs))
            for item in items:
                if key.split("@")[0] in known:
                    check_choice(key.split("@")[0], str(item), config_dirs)
            sweeps.append((key, items))
        elif key == "protocol" and isinstance(listed := override.value(), list):
            chosen = [str(_plain(name)) for name in listed]
            for name in chosen:
                check_choice(key, name, config_dirs)
            choices += [(key, name) for name in chosen[:1]]
            values.append(("further_protocols", chosen[1:]))
        elif key.split("@")[0] in known and isinstance(override.value(), str | int | float):
            check_choice(key.split("@")[0], str(override.value()), config_dirs)
            choices.append((key, str(override.value())))
        else:
            values.append((key, _plain(override.value())))
    return Overrides(tuple(choices), tuple(values), tuple(removed), tuple(sweeps))


def with_experiment(arguments: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The arguments with the name of an experiment, written alone, as `experiment=NAME`.

    Raises:
        ConfigError: a word that is neither `key=value` nor an experiment, or an experiment beside another.
    """
    matching, names = [], group_names("experiment", config_dirs)
    for argument in arguments:
        if "=" in argument or argument.startswith("~"):
            matching.append(argument)
        elif argument in names:
            matching.append(f"experiment={argument}")
        else:
            raise ConfigError(
                f"{argument}: not understood; {suggestion(argument, names)}write key=value or an experiment's name, "
                "as in quickstart train.lr=1e-4"
            )
    chosen = [argument for argument in matching if argument.startswith("experiment=")]
    if len(set(chosen)) > 1 and matching != list(arguments):
        raise ConfigError(f"{' '.join(chosen)}: one experiment at a time; run the command once for each")
    return matching


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _sweep_values(override: Any, argument: str, config_dirs: Sequence[Path]) -> list[Any]:
    from hydra.core.override_parser.types import Glob, RangeSweep

    value, key = override.value(), override.get_key_element().lstrip("+~")
    if getattr(value, "shuffle", False):
        raise ConfigError(f"{argument}: the order of a sweep's points changes nothing; write {key}=a,b without shuffle")
    if isinstance(value, RangeSweep):
        step = value.step or 0
        count = ((value.stop or 0) - (value.start or 0)) / step if step else float("inf")
        if not count <= MAX_POINTS:
            raise ConfigError(f"{argument}: is more than {MAX_POINTS:,} values, the limit of a sweep; give fewer")
        return list(value.range())
    if isinstance(value, Glob):
        names = list(value.filter(group_names(key, config_dirs))) if key in groups(config_dirs) else []
        if not names:
            raise ConfigError(f"{argument}: matches no file of a config group; write GROUP=glob(PATTERN)")
        return names
    if not hasattr(value, "list"):
        raise ConfigError(f"{argument}: only key=a,b, choice(...), range(...) and, of a config group, glob(...) sweep")
    return [_plain(v) for v in override.sweep_iterator()]


def _plain(value: object) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value


def compose(choices: Sequence[tuple[str, str]], config_dirs: Sequence[Path] = ()) -> Block:
    """The composed config as plain data, interpolations still unresolved.

    Raises:
        ConfigError: Hydra refuses, e.g. a file that is not YAML; names the file.
    """
    for key, name in choices:
        check_files(key.split("@")[0].lstrip("/"), name, config_dirs)
    search = [f"hydra.searchpath=[{','.join(f'file://{d.resolve()}' for d in config_dirs)}]"] if config_dirs else []
    try:
        composed = _hydra(CONF, "config", [f"{key}={name}" for key, name in choices] + search)
    except CompositionError:
        # A group that the experiment does not mention must be added, not replaced; users should not have to know.
        overrides = [f"{key}={name}" for key, name in choices if key == "experiment"]
        for key, name in (choice for choice in choices if choice[0] != "experiment"):
            mentioned = key in _hydra(CONF, "config", overrides + search, hydra=True)["hydra"]["runtime"]["choices"]
            overrides.append(f"{'' if mentioned else '+'}{key}={name}")
        composed = _hydra(CONF, "config", overrides + search)
    composed.pop("hydra", None)
    return composed


class CompositionError(ConfigError):
    """Hydra, OmegaConf or YAML refused to compose."""


def _hydra(folder: Path, name: str, overrides: Sequence[str], *, hydra: bool = False) -> Block:
    """Hydra's composition as plain data, interpolations unresolved; with its own block where `hydra` is set."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = hydra_compose(name, overrides=list(overrides), return_hydra_config=hydra)
            plain = OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise CompositionError(f"conf: the config cannot be composed: {text[:400]}") from None
    if not isinstance(plain, dict):
        raise CompositionError(f"conf: {name} is a {type(plain).__name__}; it must be a mapping")
    return {str(k): v for k, v in plain.items()}


def read_choice(group: str, name: str, config_dirs: Sequence[Path] = ()) -> Block:
    """The content of one file of a group, alone, interpolations unresolved."""
    check_choice(group, name, config_dirs)
    places = [place.resolve() for place in (CONF, *config_dirs)]
    place = next(p for p in places if (p / group / f"{name}.yaml").is_file())
    others = ",".join(f"file://{p}" for p in places if p != place)
    return _hydra(place, f"{group}/{name}", [f"hydra.searchpath=[{others}]"])


def with_value(config: Options, key: str, value: object) -> Block:
    """A copy of `config` with dotted `key` set; only the path to it is copied, the rest is shared."""
    head, _, rest = key.partition(".")
    changed = dict(config)
    if rest:
        inner = config.get(head)
        changed[head] = with_value(inner if isinstance(inner, Mapping) else {}, rest, value)
    else:
        changed[head] = copy.deepcopy(value)
    return changed


def without(config: Options, key: str, above: str = "") -> Block:
    """A copy of `config` with dotted `key` removed; `above` is the key of `config` itself."""
    head, _, rest = key.partition(".")
    if head not in config:
        raise unknown_name(f"~{above}{key}", head, map(str, config), "key to remove")
    changed = dict(config)
    if rest:
        changed[head] = without(config[head] if isinstance(config[head], Mapping) else {}, rest, f"{above}{head}.")
    else:
        del changed[head]
    return changed


def has_interpolation(value: object) -> bool:
    """True where some text in `value` holds `${`."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(map(has_interpolation, value.values()))
    return isinstance(value, list) and any(map(has_interpolation, value))


def resolve(config: Options) -> Block:
    """`config` with every interpolation resolved; unchanged (and cheap) where there is none.

    Raises:
        ConfigError: an interpolation that cannot be resolved, or a `???` nobody filled in.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not has_interpolation(config):
        return dict(config)
    check_size(config)
    _register_resolvers(config.get("plugins"))
    try:
        plain = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'conf'}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError("conf: interpolations ${...} refer to each other in a circle; remove one of them") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _register_resolvers(plugins: object) -> None:
    """Imports `<plugin>/resolvers.py`, where a package of one's own registers OmegaConf resolvers."""
    for name in plugins if isinstance(plugins, list) else ():
        if isinstance(name, str) and name.isidentifier() and source_file(f"{name}.resolvers") is not None:
            import_module(f"{name}.resolvers")


def to_yaml(config: Options) -> str:
    """The config as YAML text."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
