"""Names for methods: one word that a recipe, a flag and the Python API all use."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tfcompress.errors import InputError, unknown

C = TypeVar("C", bound=type)


class Registry:
    """The methods of one family, by name.

    A method is a frozen dataclass in a module of `package`; the modules are imported on first
    use, so that a new method is one new file.

        METHODS = Registry("clustering method", __name__)      # in the family's __init__.py

        @METHODS.register("kmeans")                             # in kmeans.py
        @dataclasses.dataclass(frozen=True)
        class KMeans: ...

        METHODS.create("kmeans")                                # or {"kmeans": {"clusters": 8}}
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._classes: dict[str, type] = {}
        self._imported = False

    def register(self, name: str) -> Callable[[C], C]:
        """Decorates a method's class with the name under which users find it."""

        def decorate(cls: C) -> C:
            other = self._classes.get(name)
            if other is not None and other.__qualname__ != cls.__qualname__:
                raise TypeError(f"{self.kind} '{name}' is registered twice: {other}, {cls}")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted."""
        return tuple(sorted(self._load()))

    def get(self, name: str) -> type:
        """Returns the class called `name`; a typo is an `InputError` with the nearest name."""
        classes = self._load()
        if name not in classes:
            raise unknown(self.kind, name, classes)
        return classes[name]

    def create(self, method: Any) -> Any:
        """Returns the method that is meant: a name, `{name: arguments}`, or the object itself."""
        if isinstance(method, str):
            return self._build(method, {})
        if isinstance(method, Mapping):
            if len(method) != 1:
                raise InputError(
                    f"A {self.kind} must be a name or {{name: arguments}} with one name. "
                    f"Received: {dict(method)!r}"
                )
            ((name, arguments),) = method.items()
            return self._build(name, {} if arguments is None else arguments)
        if type(method) in self._load().values():
            return method
        raise InputError(
            f"A {self.kind} must be a name, {{name: arguments}} or an object of one of "
            f"{', '.join(self.names())}. Received: {method!r}"
        )

    def describe(self, method: Any) -> dict[str, dict[str, Any]]:
        """Returns `{name: arguments}`, from which `create` makes an equal object."""
        for name, cls in self._load().items():
            if type(method) is cls:
                return {name: dataclasses.asdict(method)}  # type: ignore[call-overload]
        raise InputError(f"Not a {self.kind}: {method!r}")

    def _build(self, name: str, arguments: Mapping[str, Any]) -> Any:
        cls = self.get(name)
        if not isinstance(arguments, Mapping):
            raise InputError(
                f"Arguments of {self.kind} '{name}' must be a mapping. Received: {arguments!r}"
            )
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in arguments:
            if key not in fields:
                raise unknown(f"argument of {self.kind} '{name}'", key, fields)
        missing = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and field.name not in arguments
        ]
        if missing:
            raise InputError(f"{self.kind} '{name}' needs {', '.join(missing)}.")
        return cls(**arguments)

    def _load(self) -> dict[str, type]:
        if not self._imported:
            module = importlib.import_module(self._package)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{self._package}.{found.name}")
            self._imported = True
        return self._classes
