"""What `import facegrid` gives."""

import facegrid
import facegrid.client
from facegrid import errors


def test_all_names_exist_are_sorted_and_hide_nothing_public() -> None:
    modules = {name for name, value in vars(facegrid).items() if type(value) is type(facegrid)}
    public = {name for name in vars(facegrid) if not name.startswith("_")} - modules
    assert set(facegrid.__all__) == public | {"__version__"}
    assert facegrid.__all__ == sorted(facegrid.__all__)
    assert set(facegrid.client.__all__) <= set(facegrid.__all__)


def test_every_error_is_exported_and_derives_from_one() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: getattr(facegrid, name) for name in kinds} == kinds
    assert all(issubclass(kind, facegrid.FacegridError) for kind in kinds.values())
