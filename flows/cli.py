"""The command `isoflop`. Thin: it starts the services, asks Prefect to run a flow, and shows what happens."""

import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows import import_command
from flows.compare_command import compare
from flows.durations import seconds
from flows.export_command import export
from flows.fit_command import fit
from flows.generate_command import generate
from flows.pack_command import pack, unpack
from flows.plan_table import print_plan
from tasks import services
from tasks.doctor import examine
from tasks.environment import client_settings, enter
from tasks.errors import UserError, user_errors
from tasks.locks import sweeps_under_way
from tasks.preparation import json_schema, parse_override, plan_runs, prepare_data, read_spec, view_plan
from tasks.state import State, deployment_manifest, open_state

SHIPPED = {
    "isoflop-sweep": ("quick", "gpu"),
    "scaling-report": ("quick", "gpu", "paper"),
    "inference-benchmark": ("quick", "gpu", "paper"),
    "capability-suite": ("quick", "gpu"),
}
"""Profiles with deployments of their own, by flow; any other spec runs through the first, as a parameter."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which architecture, which size, how many tokens, and how sure: IsoFLOP sweeps.",
)
console = Console()

Profile = Annotated[str, typer.Argument(help="quick, gpu, or the path of a spec in YAML")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="another value for a key of the spec, as resources.threads=2"
    ),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Common to all commands; `main` looks for --debug itself."""


@app.command()
def up() -> None:
    """Start what does not run of Prefect's server and worker and MLflow's server, and deploy the flows."""
    deployment_manifest()
    state = open_state()
    endpoints = services.up(state, console.print)
    enter(state, endpoints)
    from tasks import deployments

    deployments.deploy(state)
    services.wait_for_mlflow(state, endpoints)
    console.print(f"MLflow   {endpoints.mlflow_ui}\nPrefect  {endpoints.prefect_ui}\nstate    {state.home}")


@app.command()
def ui() -> None:
    """The same as `up`: start what does not run, and say where the pages are."""
    up()


@app.command()
def env() -> None:
    """Print what prefect and mlflow need to find the services: eval "$(isoflop env)"."""
    endpoints = services.running_endpoints(open_state())
    if endpoints is None:
        raise UserError("the services do not run: isoflop up starts them")
    for name, value in client_settings(endpoints).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def down(
    force: Annotated[bool, typer.Option("--force", help="also while a sweep is under way")] = False,
) -> None:
    """Stop the services. Runs, models and reports stay."""
    state = open_state()
    busy = sweeps_under_way(state)
    if busy and not force:
        raise UserError(f"sweep {busy[0]} is under way: wait for it, cancel it, or say isoflop down --force")
    stopped = services.down(state)
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def plan(profile: Profile = "quick", overrides: Overrides = None) -> None:
    """Show the runs of a sweep: N, D, FLOPs, steps, time. Nothing is trained."""
    spec = read_spec(profile, _changes(overrides))
    state = open_state()
    enter(state)
    with console.status("preparing data"):
        view = view_plan(spec, state)
    print_plan(console, view)


@app.command()
def sweep(
    profile: Profile = "quick",
    overrides: Overrides = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="pause after this time, as 8m, 1.5h or 540 (seconds); exit code 75 then"
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="without, `isoflop report` makes it later")
    ] = True,
) -> None:
    """Run a sweep and follow it: `prefect deployment run isoflop-sweep/PROFILE`, with its services."""
    asked: dict[str, Any] = {} if time_limit is None else {"time_limit_s": seconds(time_limit)}
    if not report:
        asked["report"] = False
    changes = _changes(overrides)
    spec = read_spec(profile, changes)
    _follow(
        "isoflop-sweep",
        profile,
        {"overrides": changes, **asked},
        name=spec.name,
        check=lambda state: plan_runs(spec, prepare_data(spec, state)),
    )


@app.command()
def report(
    profile: Profile = "quick",
    table: Annotated[
        Path | None, typer.Option(help="a CSV or Parquet run table instead of the sweep's own runs")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fit and report again, without training: `prefect deployment run scaling-report/PROFILE`."""
    changes = _changes(overrides)
    spec = read_spec(profile, changes)
    path = None if table is None else str(table.absolute())
    _follow(
        "scaling-report",
        profile,
        {"overrides": changes, "table": path},
        name=spec.name if table is None else table.stem,
        check=lambda state: None,
    )


@app.command()
def inference(
    profile: Annotated[
        str, typer.Argument(help="quick, gpu, paper, or the path of a spec in YAML")
    ] = "quick",
    table: Annotated[
        Path | None, typer.Option(help="measurements made elsewhere: Parquet, CSV or a benchmark's JSON")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option(help="share of the points that the fit does not see and predicts")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure and report inference: `prefect deployment run inference-benchmark/PROFILE`."""
    from tasks.inference_spec import benchmark_name, read_benchmark

    changes = _changes(overrides) | ({} if holdout is None else {"holdout": holdout})
    path = None if table is None else str(table.absolute())
    _follow(
        "inference-benchmark",
        profile,
        {"overrides": changes, "table": path},
        name=benchmark_name(read_benchmark(profile, changes), path),
        check=lambda state: None,
    )


@app.command()
def capability(profile: Profile = "quick", overrides: Overrides = None) -> None:
    """What each architecture can do: `prefect deployment run capability-suite/PROFILE`."""
    from tasks.capability_spec import read_suite

    changes = _changes(overrides)
    suite, _ = read_suite(profile, changes)
    _follow("capability-suite", profile, {"overrides": changes}, name=suite.name, check=lambda state: None)


@app.command()
def doctor() -> None:
    """What is installed, on which devices, where the state is, and what is wrong with it."""
    state = open_state()
    enter(state)
    faults = 0
    for finding in examine(state):
        faults += finding.fault
        mark = "[red]wrong[/]" if finding.fault else "     "
        console.print(f"{mark} {finding.topic:<10} ", end="")
        console.print(finding.text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{faults} to mend" if faults else "nothing is wrong")
    raise typer.Exit(1 if faults else 0)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, so that an editor completes and checks it."""
    print(json_schema())


app.command("fit")(fit)
app.command("compare")(compare)
app.command("generate")(generate)
app.command("export")(export)
app.command("pack")(pack)
app.command("unpack")(unpack)
app.add_typer(import_command.app, name="import")


def _follow(
    flow: str,
    profile: str,
    parameters: dict[str, Any],
    *,
    name: str,
    check: Callable[[State], object],
) -> None:
    """Start the services while `check` looks for what would fail, then follow the flow run."""
    deployment_manifest()
    state = open_state()
    enter(state, services.running_endpoints(state) or services.default_endpoints(state))
    with ThreadPoolExecutor(1) as background:
        starting = background.submit(services.up, state, console.print)
        check(state)
        from flows.follow import Request, follow

        endpoints = starting.result()
    deployed, path = SHIPPED[flow], Path(profile)
    request = Request(
        deployment=f"{flow}/{profile if profile in deployed else deployed[0]}",
        parameters=parameters | {"profile": str(path.absolute()) if path.suffix else profile},
        sweep=name,
        again=shlex.join(["isoflop", *sys.argv[1:]]),
    )
    follow(console, state, endpoints, request)


def _changes(overrides: list[str] | None) -> dict[str, Any]:
    return dict(parse_override(text) for text in overrides or [])


def main() -> None:
    """Entry point: an error that is the user's to mend is one line and exit code 2."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv or not isinstance(error, user_errors()):
            raise
        print(f"isoflop: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
