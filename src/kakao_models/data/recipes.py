"""Lists of filters: written in YAML or as flags, and those of COYO and ALIGN by name."""

import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from kakao_models.data.filters import FILTERS, Filter

# What a table of COYO has passed already, and what ALIGN's authors did with theirs (as far as columns can say it)
RECIPES = {
    "coyo": ("size", "aspect", "nsfw", "length", "words", "text-frequency", "dedup"),
    "align": (
        "size:strict=true",
        "aspect:strict=true",
        "texts-per-image",
        "images-per-text",
        "rare-tokens",
        "unigrams",
    ),
}


def make_filter(name: str, parameters: dict[str, Any] | None = None) -> Filter:
    """A filter by its name and parameters; parameters that are left out have their defaults.

    Raises:
        ValueError: no such filter or parameter, or a value of another kind.
    """
    kind = FILTERS.get(name)
    if kind is None:
        raise ValueError(f"filter {name!r}: unknown filter; expected one of {', '.join(sorted(FILTERS))}")
    values = dict(kind.defaults)
    for parameter, value in (parameters or {}).items():
        if parameter not in values:
            raise ValueError(f"filter {name}: unknown parameter {parameter!r}; expected {', '.join(values) or 'none'}")
        values[parameter] = _checked(f"filter {name}: {parameter}", value, kind.defaults[parameter])
    if "min" in values and "max" in values and None not in (values["min"], values["max"]):
        if values["min"] > values["max"]:
            raise ValueError(f"filter {name}: min {values['min']} is more than max {values['max']}: no row would pass")
    if needed := [parameter for parameter in ("file", "embeddings", "column") if values.get(parameter) == ""]:
        raise ValueError(f"filter {name}: needs {' and '.join(needed)}, such as {name}:{needed[0]}=...")
    for parameter in ("top", "bits"):
        if not isinstance(values.get(parameter, 0), int) or values.get(parameter, 0) < 0:
            raise ValueError(f"filter {name}: {parameter}: got {values[parameter]!r}, expected a whole number from 0")
    return Filter(kind, values)


def parse_flag(flag: str) -> Filter:
    """A filter as a flag says it: `size`, `size:min=300`, `dedup:columns=url+text`, `range:column=x,max=1`."""
    name, _, rest = flag.partition(":")
    parameters = {}
    for part in filter(None, rest.split(",")):
        parameter, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"filter {flag!r}: {part!r} is not of the form parameter=value")
        try:
            parsed = value.split("+") if parameter.strip() == "columns" else yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"filter {flag!r}: {value!r} is not a valid YAML value ({error})") from error
        parameters[parameter.strip()] = parsed
    return make_filter(name.strip(), parameters)


def read_recipe(source: str | Path) -> list[Filter]:
    """The filters of a recipe: "coyo", "align", or a YAML file with a list of names, or of `name: {parameter: value}`.

    Raises:
        ValueError: it is no such list.
    """
    if source in RECIPES:
        return parse_flags(RECIPES[source])
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"recipe {source}: no such file, and no recipe of that name ({', '.join(RECIPES)})")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of filters, one per line, such as `- size: {{min: 200}}`")
    filters = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, str):
            filters.append(parse_flag(entry))
        elif isinstance(entry, dict) and len(entry) == 1:
            ((name, parameters),) = entry.items()
            if not isinstance(parameters, dict | None):
                raise ValueError(
                    f"{path}: entry {number}: expected {name}: {{parameter: value}}, got {reprlib.repr(parameters)}"
                )
            filters.append(make_filter(name, parameters))
        else:
            raise ValueError(f"{path}: entry {number} is not a filter: {reprlib.repr(entry)}")
    return filters


def parse_flags(flags: Iterable[str]) -> list[Filter]:
    return [parse_flag(flag) for flag in flags]


def _checked(what: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
        good = bool(value) and all(isinstance(name, str) for name in value)
    elif isinstance(default, str):
        good = isinstance(value, str)
    else:  # a number, or none
        good = isinstance(value, (int, float)) and not isinstance(value, bool) or (value is None and default is None)
        good = good and (value is None or -(2**63) <= value < 2**63 or abs(value) == float("inf"))
    if not good:
        expected = {bool: "true or false", tuple: "names of columns", str: "text"}.get(type(default), "a number")
        raise ValueError(f"{what}: got {reprlib.repr(value)}, expected {expected}")
    return value
