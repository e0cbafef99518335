"""Places: where a deployable runs. ``here`` is this machine; ``--on`` names others.

::

    here                            this machine, as without --on
    qemu:arm64[#cpu=cortex-a76]     an ARM CPU imitated by qemu; outputs only
    tflm                            the kernels of TensorFlow Lite Micro; outputs only

One table says what each place needs, and whether its times and memory mean anything. Where they do
not, none are measured, and the gate refuses bounds on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.base import words
from edgekit.base.errors import InvalidOptionError


@dataclass(frozen=True)
class Launch:
    """How the device end of a place is started.

    Attributes:
        command: Program and arguments; no shell reads them.
        environment: All of its environment variables.
        versions: Versions of what lies between this machine and the device end.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)


def _qemu_options(word: str, options: Mapping[str, str]) -> dict[str, str]:
    from edgekit.runtimes import qemu

    cpu = options.get("cpu", qemu.DEFAULT)
    words.one_of("cpu", cpu, tuple(qemu.CPUS))
    return {"cpu": cpu}


def _qemu_launch(options: Mapping[str, str]) -> Launch:
    from edgekit.runtimes import qemu

    return qemu.launch(options["cpu"])


def _none(word: str, options: Mapping[str, str]) -> dict[str, str]:
    return dict(options)


@dataclass(frozen=True)
class Kind:
    """A kind of place.

    Attributes:
        head: The word without options.
        about: What it is, for people.
        needs: What has to be there; empty for nothing.
        times: Whether times and memory there are those of a device.
        options: What may follow ``#``, as ``key=value``.
        read: Checks the values of options of a word, and gives them with defaults.
        formats: Formats of model files that it runs.
        launch: How its device end is started; None where this machine's own runtimes run it.
        device: What runs it on this machine, as :func:`edgekit.runtimes.open_runner` takes it; None
            for what a job says.
    """

    head: str
    about: str
    needs: str = ""
    times: bool = True
    options: tuple[str, ...] = ()
    read: Callable[[str, Mapping[str, str]], dict[str, str]] = _none
    formats: tuple[str, ...] = ("tflite", "onnx")
    launch: Callable[[Mapping[str, str]], Launch] | None = None
    device: str | None = None


KINDS: dict[str, Kind] = {
    kind.head: kind
    for kind in (
        Kind("here", "this machine", formats=("tflite", "onnx", "keras", "saved_model")),
        Kind(
            "qemu:arm64",
            "a 64-bit ARM CPU imitated by qemu",
            "qemu-user-static, and edgekit.devices install qemu:arm64",
            times=False,
            options=("cpu",),
            read=_qemu_options,
            launch=_qemu_launch,
        ),
        Kind(
            "tflm",
            "the kernels of TensorFlow Lite Micro",
            "pip install 'edgekit[micro]'",
            times=False,
            formats=("tflite",),
            device="tflm",
        ),
    )
}


@dataclass(frozen=True)
class PlaceSpec:
    """One place.

    Attributes:
        word: As it is shown, with all options.
        kind: Of which kind it is.
        options: What follows ``#``.
    """

    word: str
    kind: Kind
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether a process of this machine runs it, through a runtime that is installed here."""
        return self.kind.launch is None

    @property
    def device(self) -> str | None:
        """As :attr:`Kind.device`."""
        return self.kind.device

    def check_times(self) -> None:
        """Refuse to measure what means nothing.

        Raises:
            InvalidOptionError: If times and memory at the place mean nothing.
        """
        if not self.kind.times:
            raise InvalidOptionError(
                f"{self.word} is {self.kind.about}: its times and its memory are not those of a "
                f"device; leave them out, or measure on the device"
            )

    def check_format(self, name: str, format: str) -> None:
        """Refuse a model file that the place does not run.

        Raises:
            InvalidOptionError: If it does not run files of this format.
        """
        if format not in self.kind.formats:
            raise InvalidOptionError(
                f"{self.word} runs {' and '.join(self.kind.formats)} files, {name} is {format}"
            )

    def launch(self) -> Launch:
        """How its device end is started; looks whether what it needs is there.

        Raises:
            InvalidOptionError: If that is not there; says how to get it.
        """
        assert self.kind.launch is not None  # a worker here starts no device end
        return self.kind.launch(self.options)


def parse(word: str) -> PlaceSpec:
    """Read a place.

    Raises:
        InvalidOptionError: If the place, an option or its value is unknown; names what is nearest.
    """
    head, options = words.split(word)
    if head not in KINDS:
        raise InvalidOptionError(
            f"unknown place {word!r}; expected one of {', '.join(KINDS)}{words.near(head, KINDS)}"
        )
    kind = KINDS[head]
    if not kind.options and options:
        raise InvalidOptionError(f"{head} takes no options, got {word!r}")
    words.refuse_unknown(word, options, kind.options)
    options = kind.read(word, options)
    return PlaceSpec(words.join(head, **options), kind, options)


HERE = PlaceSpec("here", KINDS["here"])


def assigned(given: Iterable[str], names: Sequence[str]) -> dict[str, tuple[PlaceSpec, ...]]:
    """Where each model runs.

    Args:
        given: The values of ``--on``, ``PLACE`` for all or ``NAME=PLACE`` for one.
        names: Names of the models.

    Returns:
        Places by name, in the order of the options; ``here`` for those that no option names.

    Raises:
        InvalidOptionError: If a name or place is unknown, or is given twice.
    """
    places: dict[str, list[PlaceSpec]] = {name: [] for name in names}
    for text in given:
        name, equals, rest = text.partition("=")
        of_one = equals and not {"#", ":"} & set(name) and words.split(text)[0] not in KINDS
        if text in names or any(text.startswith(f"{each}=") for each in names):
            name = max((each for each in names if text.startswith(f"{each}=")), key=len, default="")
            of_one, rest = bool(name), text[len(name) + 1 :]
        if of_one and name not in places:
            raise InvalidOptionError(
                f"--on names {name!r}, which is not compared; expected one of {', '.join(names)}"
                f"{words.near(name, names)}"
            )
        place = parse(rest if of_one else text)
        for each in (name,) if of_one else names:
            if place in places[each]:
                raise InvalidOptionError(f"--on gives {each} the place {place.word} twice")
            places[each].append(place)
    return {name: tuple(each) or (HERE,) for name, each in places.items()}


def named(name: str, place: PlaceSpec) -> str:
    """Name of a model in tables and reports, with its place if that is another machine."""
    return name if place == HERE else f"{name} on {place.word}"
