"""How ``relayctl sandbox`` finds the sandbox that runs: by the directory of ``relayctl up``, without options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer

from sandbox.control import tell

DirectoryOption = Annotated[Path, typer.Option("--directory", help="Of `relayctl up`, or of `sandbox run`.")]
HERE = Path("var")
PATIENCE_SECONDS = 120.0


def refuse(text: str, code: int = 1) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(code)


def endpoints(directory: Path) -> dict[str, Any]:
    """What the sandbox last said of itself, dead or alive; {} when none ever ran there."""
    try:
        found: dict[str, Any] = orjson.loads((directory / "sandbox" / "endpoints.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def runs(directory: Path) -> bool:
    """Whether a sandbox answers there."""
    control = endpoints(directory).get("control", "")
    try:
        return bool(control) and bool(tell(Path(control), 5.0, cmd="addresses"))
    except (OSError, RuntimeError):
        return False


def ask(directory: Path, **command: Any) -> dict[str, Any]:
    """One command's answer; ends relayctl with 1 where no sandbox runs or it refuses, and says why."""
    control = endpoints(directory).get("control", "")
    nobody = f"no sandbox runs in {directory.absolute()}: start `relayctl up`, or name its place with --directory"
    if not control:
        refuse(nobody)
    try:
        answer = tell(Path(control), PATIENCE_SECONDS, **command)
    except OSError as error:
        refuse(f"{nobody} ({error})")
    except RuntimeError as error:
        refuse(str(error))
    answer.pop("ok")
    return answer


def account(directory: Path) -> dict[str, Any]:
    """endpoints.json of `relayctl up`: where and as whom mail is submitted; ends relayctl with 1 when there is none."""
    try:
        found: dict[str, Any] = orjson.loads((directory / "endpoints.json").read_bytes())
        return found
    except (OSError, ValueError):
        refuse(f"no relay has been started in {directory.absolute()}: start `relayctl up`")
