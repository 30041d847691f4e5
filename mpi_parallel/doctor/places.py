"""Which rank sits where: its host, its cores, its GPU. Doubles and idle ones are named."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mpi_parallel.device import Device
from mpi_parallel.device.host import usable_cores
from mpi_parallel.doctor.report import Section, count
from mpi_parallel.mpi.communicator import Communicator

ONLINE = Path("/sys/devices/system/cpu/online")
CORES = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
GPUS = Path("/proc/driver/nvidia/gpus")
SHOWN = 16  # ranks in the table, and hosts that are complained of


@dataclass(frozen=True)
class Place:
    """Where one rank is."""

    rank: int
    host: str
    cores: list[int]  # that it may use, as the system numbers them
    threads: int  # that it runs
    gpu: str | None = None  # its address on the bus: 0000:3b:00.0
    gpu_name: str | None = None
    node_cores: list[int] = field(default_factory=list)  # all that its node has
    physical: int = 0  # how many of `cores` are not the second thread of another one
    node_gpus: list[str] = field(default_factory=list)


def here(rank: int, threads: int, device: Device) -> Place:
    """The place of this rank."""
    cores = sorted(usable_cores())
    gpu, name = _gpu(device)
    return Place(
        rank, platform.node(), cores, threads, gpu, name, _online(), _physical(cores), [p.name for p in GPUS.glob("*")]
    )


def check(world: Communicator, threads: int, device: Device) -> Section:
    """The map of all ranks, and what is wrong with it."""
    places = [
        Place(**json.loads(text)) for text in world.gather_text(json.dumps(asdict(here(world.rank, threads, device))))
    ]
    return judge(places)


def judge(places: list[Place]) -> Section:
    """The section of these ranks."""
    section = Section("ranks", facts={"ranks": [asdict(place) for place in places]})
    hosts: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        hosts[place.host].append(place)
    section.tell("ranks", f"{len(places)} on {count(len(hosts), 'host')}", size=len(places), hosts=len(hosts))
    for place in places[:SHOWN]:
        gpu = f", GPU {place.gpu} ({place.gpu_name})" if place.gpu else ""
        section.rows.append(
            (f"rank {place.rank}", f"{place.host}, cores {ranges(place.cores)}, {count(place.threads, 'thread')}{gpu}")
        )
    if len(places) > SHOWN:
        section.rows.append(("…", f"and {len(places) - SHOWN} more (--json has all)"))
    for host, mine in list(hosts.items())[:SHOWN]:
        _judge_cores(section, host, mine)
        _judge_gpus(section, host, mine)
    return section


def _judge_cores(section: Section, host: str, mine: list[Place]) -> None:
    """Cores that carry more than one rank, cores that carry none, threads that are too many."""
    load: dict[int, float] = defaultdict(float)
    for place in mine:
        for core in place.cores:
            load[core] += 1 / len(place.cores)
    doubled = [core for core, ranks in load.items() if ranks > 1 + 1e-9]
    idle = sorted(set(mine[0].node_cores) - set(load))
    threads, cores = sum(place.threads for place in mine), len(load)
    if doubled:
        ranks = [place.rank for place in mine if set(place.cores) & set(doubled)]
        section.warnings.append(
            f"{host}: cores {ranges(doubled)} carry more than one rank each (ranks {ranges(ranks)}): "
            + ("bind the ranks to cores of their own" if idle else "start fewer ranks")
        )
    elif threads > cores:
        section.warnings.append(f"{host}: {threads} threads of {len(mine)} ranks on {cores} cores: lower --threads")
    elif len(mine) == 1 and threads > mine[0].physical > 0:
        section.warnings.append(
            f"{host}: {threads} threads on {mine[0].physical} cores with two hardware threads each: "
            f"matrix products gain nothing from the second, try --threads {mine[0].physical}"
        )
    if threads < cores:
        section.rows.append((f"on {host}", f"{cores - threads} of {cores} usable cores have no thread"))
    if idle:
        section.rows.append((f"on {host}", f"cores {ranges(idle)} belong to no rank (idle, or another job's)"))


def _judge_gpus(section: Section, host: str, mine: list[Place]) -> None:
    """GPUs that several ranks share, and those that none has."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for place in mine:
        if place.gpu:
            ranks[place.gpu].append(place.rank)
    for gpu, sharing in ranks.items():
        if len(sharing) > 1:
            section.warnings.append(f"{host}: ranks {ranges(sharing)} share GPU {gpu}: start a rank a GPU")
    idle = set(mine[0].node_gpus) - {gpu.split()[0] for gpu in ranks}
    if idle and ranks:
        section.warnings.append(f"{host}: GPU {', '.join(sorted(idle))} has no rank (or belongs to another job)")
    elif idle:
        section.rows.append((f"on {host}", f"GPU {', '.join(sorted(idle))} is there and not used"))
    if ranks and (without := [place.rank for place in mine if not place.gpu]):
        section.warnings.append(f"{host}: ranks {ranges(without)} have no GPU while others have: name --device")


def ranges(numbers: Iterable[int]) -> str:
    """0-3,8 for 0, 1, 2, 3, 8."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def numbers(text: str) -> list[int]:
    """What `ranges` wrote."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _online() -> list[int]:
    try:
        return numbers(ONLINE.read_text())
    except (OSError, ValueError):
        return list(range(os.cpu_count() or 1))


def _physical(cores: list[int]) -> int:
    """How many cores these hardware threads are; 0 where the system does not tell."""
    try:
        return len({Path(CORES.format(core)).read_text() for core in cores})
    except OSError:
        return 0


def _gpu(device: Device) -> tuple[str | None, str | None]:
    """Identity and name of this rank's GPU."""
    if device.kind != "cuda":
        return None, None
    runtime = device.xp.cuda.runtime
    number = device.xp.cuda.Device().id
    properties = runtime.getDeviceProperties(number)
    return str(runtime.deviceGetPCIBusId(number)).lower(), properties["name"].decode()
