"""LoRAs and their policy on a ModelPatcher.

Nothing on the model is touched when a node runs: the clone carries a frozen spec, two wrappers that fuse while sampling
what is decided while sampling (``live``), and ordinary weight patches that core applies for all the rest (``merged``):
what static policies merge, and layers that one role has to itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...fusion.policies import RECOMMENDED, Policy, StaticPolicy, Sum
from ...fusion.records import Plan
from ...fusion.routing import Refinement
from ..core import stores_plainly
from ..loras import LoraPatches, forget_all_but, loras_on, remember
from .live import ATTACHMENT, LiveFusion
from .order import Placed, left_to_core, of_others, placed_lora, put_on, refuse_reshaped, take_off, take_off_merged
from .spec import FusionSpec, bank_for, check_plan
from .static import merged_patches
from .unrouted import announce
from .weights import give_own, give_sum


@dataclass
class Attachment:
    """What rides on a ModelPatcher under :data:`ATTACHMENT`.

    Attributes:
        policy, refinement: for the LoRAs on it, and those still to come.
        spec: all LoRAs on it.
        live: what adds a part of them while sampling; None if nothing is.
        merged: the other ones, as weight patches.
        plan: that the policy comes from.
        shown_on: execution id of the node that shows the routing map.
    """

    policy: Policy | None = None
    refinement: Refinement = Refinement()
    spec: FusionSpec | None = None
    live: LiveFusion | None = None
    merged: list[Placed] = field(default_factory=list)
    plan: Plan | None = None
    shown_on: str | None = None


def attachment_of(model: ModelPatcher) -> Attachment:
    return model.get_attachment(ATTACHMENT) or Attachment()


def left_on(model: ModelPatcher) -> dict[str, str]:
    """Layers that are not routed in a run on the model, because of what others loaded there; with the reason."""
    held = attachment_of(model)
    return left_to_core(model, held.live.spec, held.merged) if held.live is not None else {}


def show_on(model: ModelPatcher, node: str | None, *, sets_policy: bool) -> ModelPatcher:
    """The same model, with its routing map shown on the node that just made it.

    A loader leaves it to the router, wherever that stands. The attachment is changed in place: it is as new as the
    model.
    """
    if model.get_attachment(ATTACHMENT) is None:
        model.set_attachments(ATTACHMENT, Attachment())
    held = attachment_of(model)
    if node is not None and (sets_policy or held.policy is None):
        held.shown_on = node
        if held.live is not None:
            held.live.shown_on = node
        else:
            announce(model, held.spec, node)
    return model


def add_loras(model: ModelPatcher, loras: Iterable[tuple[LoraPatches, str, float]], lean: float = 0.0) -> ModelPatcher:
    """A clone of the model with LoRAs on it: routable deltas in the fusion spec, the rest merged by core.

    Args:
        model: may already carry LoRAs; they stay.
        loras: patches, role and strength of each. LoRAs of strength 0 are left out, as core does.
        lean: preference for the subject where nobody has set a policy, nor sets one later; 0 leaves what is there.
    """
    model = _clone(model)
    held = attachment_of(model)
    refinement = replace(held.refinement, lean=lean) if lean and held.policy is None else held.refinement
    for patches, role, strength in loras:
        if strength == 0:
            continue
        refuse_reshaped(model, patches)
        behind = {key: len(entries) for key, entries in of_others(model, held.merged).items()}
        remember(model, [patches.on_model(role, strength, behind)])
        if patches.merged:
            model.add_patches({t.core_key: patch for t, (patch, _) in patches.merged.items()}, strength)
    routed = tuple(lora for lora in loras_on(model) if lora.deltas)
    if routed:
        spec = FusionSpec(routed, held.policy or RECOMMENDED, bank_for(model, routed), refinement)
        _attach(model, held, spec, held.policy, refinement, plan=held.plan)
    elif refinement != held.refinement:  # for loaders behind
        model.set_attachments(ATTACHMENT, replace(held, refinement=refinement))
    return model


def set_policy(
    model: ModelPatcher,
    policy: Policy,
    refinement: Refinement | None = None,
    *,
    always_live: bool = False,
    plan: Plan | None = None,
) -> ModelPatcher:
    """A clone of the model whose LoRAs, those on it and those still to come, are fused by the policy.

    Args:
        refinement: settings that apply to any policy; neutral ones if None.
        always_live: run the plain sum at run time too, instead of leaving it to core's merge (to check the one
            against the other).
        plan: that policy and refinement come from.

    Raises:
        ConductorError: the plan is of other LoRAs than the model carries.
    """
    model = _clone(model)
    held, refinement = attachment_of(model), refinement or Refinement()
    spec = FusionSpec(held.spec.loras, policy, held.spec.bank, refinement) if held.spec else None
    _attach(model, held, spec, policy, refinement, always_live=always_live, plan=plan)
    return model


def with_roles_alone(model: ModelPatcher, roles: Collection[str]) -> ModelPatcher:
    """A clone with the LoRAs of some roles only, as core's own loaders leave them on a model; nothing is fused.

    roles: of both, the plain stack at the strengths they were loaded with; of none, the model without LoRAs of ours.
    What others put on the model stays.
    """
    model = _clone(model)
    held, loras = attachment_of(model), loras_on(model)
    _detach(model, held)
    take_off_merged(model, [lora for lora in loras if lora.role not in roles])
    staying = [lora for lora in loras if lora.role in roles]
    put_on(
        model, [placed_lora(lora, {target.key.removesuffix(".weight") for target in lora.deltas}) for lora in staying]
    )
    model.set_attachments(ATTACHMENT, Attachment())
    forget_all_but(model, staying)
    return model


def _clone(model: ModelPatcher) -> ModelPatcher:
    """A clone that core takes for one of the first patcher, which a loader's output keeps.

    Where a loaded clone dies, core goes on with its parent. After an error both may die at once, with the error's
    traceback: core then takes the model for leaked, and collects garbage at every load from then on.
    """
    clone = model.clone()
    while (first := getattr(clone, "parent", None)) is not None and first.parent is not None:
        clone.parent = first.parent
    return clone


def _attach(
    model: ModelPatcher,
    held: Attachment,
    spec: FusionSpec | None,
    policy: Policy | None,
    refinement: Refinement,
    *,
    always_live: bool = False,
    plan: Plan | None = None,
) -> None:
    if spec is not None and plan is not None:
        check_plan(spec, plan, more_to_come=True)
    _detach(model, held)
    now = Attachment(policy, refinement, spec, shown_on=held.shown_on, plan=plan)
    if spec is not None and isinstance(spec.policy, StaticPolicy) and not (always_live or _in_live_sum(spec)):
        now.merged = merged_patches(spec)
    elif spec is not None:
        settled = frozenset() if always_live or spec.concerns_lone_layers else frozenset(_lone_layers(model, spec))
        now.spec = spec = replace(spec, settled=settled)
        now.merged = [placed_lora(lora, spec.settled) for lora in spec.loras]
        if len(spec.settled) < len(spec.layers):
            now.live = LiveFusion(spec, held.shown_on)
    put_on(model, now.merged)
    if now.live is not None:
        key = f"{ATTACHMENT}:{now.live.spec.content_id}"
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, now.live.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, now.live.apply_model)
        model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, now.live.pre_run)
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, now.live.cleanup)
        model.set_additional_models(key, [now.live.spec.bank.clone()])
        give_sum(model, _summed)
    if now.live is None:
        announce(model, spec, held.shown_on)
    model.set_attachments(ATTACHMENT, now)


def _summed(model: ModelPatcher) -> ModelPatcher:
    """A clone with the LoRAs as ordinary patches."""
    return set_policy(model, Sum())


def _lone_layers(model: ModelPatcher, spec: FusionSpec) -> Iterator[str]:
    """Names of layers that one role has to itself, and whose weights core can merge as well as we can add to them."""
    shared = {layer.name for layer in spec.shared}
    for layer in spec.layers:
        if layer.name not in shared and stores_plainly(model, f"{layer.name}.weight"):
            yield layer.name


def _in_live_sum(spec: FusionSpec) -> bool:
    """Whether the plain sum has to run live: what is merged beforehand is the same in every pass."""
    policy = spec.policy
    return isinstance(policy, StaticPolicy) and policy.is_sum and spec.refinement.emphasis not in (0.0, 1.0)


def _detach(model: ModelPatcher, held: Attachment) -> None:
    """Take off what an earlier policy put on this clone; patches of others stay."""
    announce(model, None, None)
    if held.live is not None:
        key = f"{ATTACHMENT}:{held.live.spec.content_id}"
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
        model.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, key)
        model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
        give_own(model)
        model.remove_additional_models(key)
    take_off(model, held.merged)
