"""RowAdamW, the optimizer of a value pool: AdamW over the rows that were read, from the log of the reads."""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw as functional_adamw

from memlayers.kernels import kernels_for
from memlayers.kernels.interface import STATE_BLOCK, AdamW, Inverted, RowState, Schedule, Table
from memlayers.pool.columns import Columns
from memlayers.pool.factored_gradient import NO_READ_LOG, FactoredGradient
from memlayers.pool.offload import step_on_host
from memlayers.pool.row_state import RowFormat, TouchedRows
from memlayers.pool.sharding import is_sharded
from memlayers.pool.value_pool import ValuePool, columns_of, is_value_pool
from memlayers.utils.errors import InputError

ParameterGroups: TypeAlias = Iterable[dict[str, Any]]

NEGLIGIBLE = 1e-20
"""Dense semantics: moments whose ratio has shrunk by this factor move no value any more, in float64 either."""


class RowAdamW(Optimizer):
    """AdamW over the read log of a value pool: only rows that were read have state, and only they move.

    A value pool's gradient arrives as a `FactoredGradient`. A step inverts the log once, then reduces, steps and
    writes back row by row; no gradient of a row is ever stored (docs/method.md, "The hot path"). Every other parameter
    gets torch's AdamW. Works with plain loops, gradient accumulation, clipping, checkpointing, transformers.Trainer and
    TRL.

    Two semantics. ``lazy``: a row moves when it has a gradient, and its bias correction counts its own steps (with one
    global count a row first touched late would take a step of up to (1 - beta1) / sqrt(1 - beta2) learning rates).
    ``dense``: the result is torch.optim.AdamW's over the whole pool, in which rows without a gradient drift on under
    their momentum and decay. They are moved late, just before they are next read or saved; a missed step costs its
    arithmetic then, until the momentum is too small to count.

    State per touched row: both moments, in the pool's precision but at least float32, or 8 bits each with a float32
    scale per 128 elements (as in Dettmers et al. 2022, arXiv 2110.02861, but with powers for a code book: see
    `memlayers.kernels.reference`); and a float32 master where the pool is coarser, unless it is bfloat16 and rounded
    stochastically. Kept on the pool's device, or in host memory: then gradients of rows travel there and values back
    in overlapping pieces, and the host always keeps a master.

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decoupled weight decay; lazy semantics applies it to the rows that move.
        semantics: "dense" or "lazy"; None for dense, or lazy where the state is lossy (8 bits, host, stochastic). Dense
            learns more per exposure and disturbs known facts less (docs/LOG.md).
        state_bits: 32 or 8.
        state_device: "device" or "host".
        rounding: how a bfloat16 pool takes updates below its resolution: "master" (exact; 4 bytes a value of the rows
            touched) or "stochastic" (unbiased; no memory).

    Raises:
        InputError: a setting is out of range, or dense semantics is asked of a lossy state.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | ParameterGroups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        semantics: str | None = None,
        state_bits: int = 32,
        state_device: str = "device",
        rounding: str = "master",
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            in_range = group["lr"] >= 0 and group["eps"] >= 0 and group["weight_decay"] >= 0
            if not (in_range and all(0 <= beta < 1 for beta in group["betas"])):
                raise InputError("lr, eps and weight_decay must be at least 0, and both betas in [0, 1)")
        lossy = state_bits == 8 or state_device == "host" or rounding == "stochastic"
        semantics = semantics or ("lazy" if lossy else "dense")
        for setting, value, choices in (
            ("semantics", semantics, ("lazy", "dense")),
            ("state_bits", state_bits, (32, 8)),
            ("state_device", state_device, ("device", "host")),
            ("rounding", rounding, ("master", "stochastic")),
        ):
            if value not in choices:
                raise InputError(f"{setting} is {value!r}: take {' or '.join(map(str, choices))}")
        if semantics == "dense" and lossy:
            raise InputError(
                "dense semantics means torch's AdamW to the last digit: take state_bits=32, state_device='device' and "
                "rounding='master', or semantics='lazy'"
            )
        self.semantics, self.state_bits, self.state_device = semantics, state_bits, state_device
        self.rounding = rounding

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient.

        Args:
            closure: computes the loss anew and returns it, as in torch.

        Returns:
            The closure's loss, if there is one.

        Raises:
            InputError: a value pool's gradient is dense. No parameter has moved then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for parameter, _ in parameters:
            _check_gradient(parameter, "touched" in self.state.get(parameter, {}))
        for parameter, group in parameters:
            if isinstance(parameter.grad, FactoredGradient):
                self._step_rows(parameter, parameter.grad, group)
            elif parameter.grad is not None:
                self._step_dense(parameter, parameter.grad, group)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Dense semantics: moves every row to where torch's AdamW would have it now. Reading and saving do so too."""
        for parameter, state in self.state.items():
            if "pool" in state and (pool := state["pool"]()) is not None:
                self._catch_up(parameter, pool, None)

    # -- one parameter ----------------------------------------------------------------------------------------------

    def _step_dense(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Torch's AdamW for a parameter that is no value pool."""
        state = self.state[parameter]
        device = torch.device("cpu") if self.state_device == "host" else parameter.device
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, device=device, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, device=device, memory_format=torch.preserve_format)
        values = parameter.to(device)
        functional_adamw(
            [values], [gradient.to(device)], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            fused=device.type == "cpu", amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        if values.data_ptr() != parameter.data_ptr():
            parameter.copy_(values)

    def _step_rows(self, parameter: Tensor, gradient: FactoredGradient, group: dict[str, Any]) -> None:
        """Moves the rows in the log."""
        state, pool = self.state[parameter], gradient.pool
        assert isinstance(pool, ValuePool)
        if not state:
            _check_columns(pool, self, group["weight_decay"] != 0)
            state.update(self._fresh_state(pool))
        if "pool" not in state:
            self._attach(parameter, pool, state)
        inverted = gradient.inverted()
        touched: TouchedRows = state["touched"]
        if self.semantics == "dense":
            self._catch_up(parameter, pool, inverted.rows)
        state["step"] += 1
        if self.semantics == "dense":
            record = [group["lr"], group["weight_decay"], *group["betas"], group["eps"]]
            state["schedule"].append(record)
            state["decays"] = state["decays"] or group["weight_decay"] != 0
        rows = inverted.rows.to(touched.format.device)
        places = touched.places_of(rows, pool.table)
        if self.semantics == "lazy":
            touched.steps[places] += 1
            adamw = _numbers(group, touched.steps[places])
        else:
            now = len(state["schedule"])
            touched.steps[places] = now
            state["caught_up"][inverted.rows] = now
            alike = _numbers(group, touched.steps.new_tensor([now]))
            adamw = alike._replace(step_size=alike.step_size.repeat(len(places)), root=alike.root.repeat(len(places)))
        if self.state_device == "host":
            step_on_host(pool, gradient, inverted, touched, places, adamw)
            return
        kernels = kernels_for(parameter.device)
        noise = _noise_key(int(state["step"])) if self.rounding == "stochastic" else None
        for chunk, picked, at in touched.by_chunk(places):
            part = adamw._replace(step_size=adamw.step_size[picked], root=adamw.root[picked])
            table, state, moved = pool.table, chunk, inverted
            if pool.units_are_shared:
                table, state, moved = *_master_alone(chunk), _moved_to(inverted, picked, at)
            kernels.adamw_rows(table, state, at, gradient.entries, moved, picked, part, gradient.factor, noise)
            if pool.units_are_shared:
                pool.write(inverted.rows[picked], table.values[at])

    def _fresh_state(self, pool: ValuePool) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": torch.zeros((), dtype=torch.float32),
            "touched": TouchedRows(self._format_for(pool.parameter, pool.slots, pool.dim)),
        }
        if self.semantics == "dense":
            state["schedule"] = []
            state["decays"] = False
            state["caught_up"] = torch.zeros(pool.slots, dtype=torch.int64, device=pool.parameter.device)
        return state

    def _format_for(self, parameter: Tensor, slots: int, width: int) -> RowFormat:
        exact = torch.promote_types(parameter.dtype, torch.float32)
        is_int8 = parameter.dim() == 1
        host = self.state_device == "host"
        coarse = is_int8 or (parameter.dtype != exact and self.rounding == "master")
        device = torch.device("cpu") if host else parameter.device
        columns = columns_of(parameter)
        held = width if columns is None else columns.width
        return RowFormat(slots, held, exact, self.state_bits, coarse or host, device, chunk_width=width)

    # -- rows moved late (dense semantics) --------------------------------------------------------------------------

    def __del__(self) -> None:
        # Not where __init__ failed, nor when the interpreter ends and its modules are gone.
        if getattr(self, "semantics", None) == "dense" and not sys.is_finalizing():
            self.flush()

    def _attach(self, parameter: Tensor, pool: ValuePool, state: dict[str, Any]) -> None:
        state["pool"] = weakref.ref(pool)
        if pool.before_read is not None:  # what another optimizer still has to move
            pool.before_read(None)
            pool.before_read = None
        if self.semantics != "dense":
            return
        optimizer, owned = weakref.ref(self), weakref.ref(parameter)

        def before_read(indices: Tensor | None) -> None:
            own, read, there = optimizer(), owned(), state["pool"]()
            if own is not None and read is not None and there is not None:
                own._catch_up(read, there, indices)

        pool.before_read = before_read

    @torch.no_grad()
    def _catch_up(self, parameter: Tensor, pool: ValuePool, indices: Tensor | None) -> None:
        """Brings rows (None: all) to the present step."""
        state = self.state.get(parameter, {})
        if not state.get("schedule"):
            return
        records, touched, caught_up = state["schedule"], state["touched"], state["caught_up"]
        now = len(records)
        kernels = kernels_for(parameter.device)
        if indices is None:
            indices = (caught_up < now).nonzero()
        rows, since = kernels.stale_rows(indices, caught_up, now)
        if not len(rows):
            return
        places = touched.place[rows].long()
        never = (places < 0).nonzero().squeeze(-1)
        if len(never) and state["decays"]:
            at, first = rows[never], int(since[never].min())
            then = since[never] - first
            kernels.drift_rows(pool.table, None, at, at, then, then, _schedule(records, first, rows.device), None)
        had = (places >= 0).nonzero().squeeze(-1)
        if not len(had):
            return
        first = int(since[had].min())
        schedule = _schedule(records, first, rows.device)
        shrink = schedule.beta1 / math.sqrt(schedule.beta2) if schedule.beta2 else math.inf
        horizon = math.ceil(math.log(NEGLIGIBLE) / math.log(shrink)) if 0 < shrink < 1 else 2**62
        for chunk, picked, at in touched.by_chunk(places[had]):
            those = had[picked]
            moving_until = touched.steps[places[those]] + (horizon - first)
            table, state, drifting = pool.table, chunk, rows[those]
            if pool.units_are_shared:
                (table, state), drifting = _master_alone(chunk), at
            kernels.drift_rows(table, state, at, drifting, since[those] - first, moving_until, schedule, None)
            if pool.units_are_shared:
                pool.write(rows[those], table.values[at])

    # -- saving and loading -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's form; a pool's is flat tensors, cut to the rows touched.

        Of a pool that is split by columns they are distributed tensors.

        Dense semantics brings all rows up to date first, so that pool and state belong to one step, whichever is saved
        first.
        """
        self.flush()
        packed = super().state_dict()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, state in packed["state"].items():
            if "touched" in state:
                flat = {"step": state["step"], **state["touched"].tensors()}
                columns = columns_of(parameters[index])
                if columns is not None:
                    flat = {name: columns.dtensor(v) if v.dim() == 2 else v for name, v in flat.items()}
                if self.semantics == "dense":
                    flat["schedule"] = torch.tensor(state["schedule"], dtype=torch.float64)
                packed["state"][index] = flat
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state, bit for bit, wherever its tensors lie now; whole, or distributed over the same processes.

        torch's own would cast the state to each parameter's dtype and device.

        Raises:
            InputError: it was saved with other semantics or another state format.
        """
        super().load_state_dict({**state_dict, "state": {}})
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(saved, own, strict=True):
            entries = state_dict["state"].get(key)
            if not entries:
                continue
            step = entries["step"].to("cpu", copy=True)
            if "rows" in entries:
                self.state[parameter] = {"step": step, **self._loaded(parameter, entries)}
            else:
                host = self.state_device == "host"
                moments = {
                    name: entries[name].to("cpu" if host else parameter.device, copy=True)
                    for name in ("exp_avg", "exp_avg_sq")
                }
                self.state[parameter] = {"step": step, **moments}

    def _loaded(self, parameter: Tensor, entries: dict[str, Tensor]) -> dict[str, Any]:
        columns = columns_of(parameter)
        if columns is not None:
            width = columns.dim
        else:
            width = entries["exp_avg.0"].shape[1] if "exp_avg.0" in entries else parameter.shape[-1]
        format = self._format_for(parameter, parameter.shape[0], width)
        expected = format.empty_chunk(0)
        for name, value in expected._asdict().items():
            stored = entries.get(f"{name}.0")
            if len(entries["rows"]) and (
                (stored is None) != (value is None)
                or (stored is not None and value is not None and stored.dtype != value.dtype)
            ):
                raise InputError("the optimizer's state was saved with another state_bits, rounding or state_device")
        if ("schedule" in entries) != (self.semantics == "dense"):
            raise InputError(f"the optimizer's state was not saved with semantics={self.semantics!r}")
        touched = TouchedRows(format)
        touched.load({name: _own_columns(columns, name, value, expected) for name, value in entries.items()})
        loaded: dict[str, Any] = {"touched": touched}
        if self.semantics == "dense":
            loaded["schedule"] = entries["schedule"].tolist()
            loaded["decays"] = any(record[1] for record in loaded["schedule"])
            now = len(loaded["schedule"])
            loaded["caught_up"] = torch.full((format.slots,), now, dtype=torch.int64, device=parameter.device)
        return loaded


def _own_columns(columns: Columns | None, name: str, value: Tensor, like: RowState) -> Tensor:
    """What a process keeps of a tensor of a saved state: its columns, of all or of what it saved itself."""
    kept = getattr(like, name.partition(".")[0], None)
    if kept is None or value.dim() < 2:
        return value
    if is_sharded(value):
        return value.to_local()  # type: ignore[attr-defined, no-any-return]
    return value[:, : kept.shape[1]] if columns is None else columns.cut(value, kept.shape[1])


def _check_gradient(parameter: Tensor, has_rows: bool) -> None:
    """Refuses a value pool's gradient without its log: torch's AdamW would be another method, rows' state another."""
    gradient = parameter.grad
    if gradient is None or (isinstance(gradient, FactoredGradient) and not gradient.is_dense):
        return
    if isinstance(gradient, FactoredGradient) or has_rows or is_value_pool(parameter) or is_sharded(parameter):
        raise InputError(NO_READ_LOG)


def _noise_key(step: int) -> int:
    """A key of stochastic rounding; keys of successive steps differ in all their bits."""
    return (step * 0x9E3779B9) & 0xFFFFFFFF


def _master_alone(chunk: RowState) -> tuple[Table, RowState]:
    """Master and moments of a chunk, the master as a table of its own.

    An int8 row whose unit several processes share is rounded later, when the largest of all its columns is known.
    """
    assert chunk.master is not None
    return Table(chunk.master), chunk._replace(master=None)


def _moved_to(inverted: Inverted, picked: Tensor, rows: Tensor) -> Inverted:
    """The same log for a table in which the picked rows lie elsewhere."""
    there = inverted.rows.clone()
    there[picked] = rows
    return inverted._replace(rows=there)


def _check_columns(pool: ValuePool, options: RowAdamW, decays: bool) -> None:
    """Refuses what would not be the same bits on a pool whose columns several processes hold."""
    columns = pool.columns
    if columns is None:
        return
    if options.rounding == "stochastic":
        raise InputError("a pool split by columns is not rounded stochastically: take rounding='master'")
    if options.state_bits == 8 and columns.unit % STATE_BLOCK:
        raise InputError(
            f"8-bit state is scaled by blocks of {STATE_BLOCK}: split the pool by them, Columns(unit={STATE_BLOCK})"
        )
    if pool.units_are_shared and decays:
        raise InputError("weight decay is not for an int8 pool split by columns: take 0, or a bfloat16 pool")


def _numbers(group: dict[str, Any], steps: Tensor) -> AdamW:
    """A step's numbers, in float64 as torch's AdamW has them: 1 - beta2^t loses digits in float32."""
    beta1, beta2 = group["betas"]
    exponents = steps.double()
    return AdamW(
        step_size=float(group["lr"]) / (1 - beta1**exponents),
        root=(1 - beta2**exponents).sqrt(),
        decay=1 - float(group["lr"]) * group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
    )


def _schedule(records: list[list[float]], first: int, device: torch.device) -> Schedule:
    """The numbers of the steps after step `first`, counted from it: a long run's past is not gone through again."""
    kept = torch.tensor([records[first], *records[first:]], dtype=torch.float64)
    exponents = torch.arange(first, first + len(kept), dtype=torch.float64)
    lr, weight_decay, beta1, beta2 = kept[:, 0], kept[:, 1], float(kept[-1, 2]), float(kept[-1, 3])
    return Schedule(
        step_size=(lr / (1 - beta1**exponents)).to(device),
        root=(1 - beta2**exponents).sqrt().to(device),
        decay=(1 - lr * weight_decay).to(device),
        beta1=beta1,
        beta2=beta2,
        eps=float(kept[-1, 4]),
    )
