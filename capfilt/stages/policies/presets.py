"""The policies by name, as their authors have them: which texts are kept, over stored scores.

Each is a frozen stage that adds the columns of `schema.SELECT`. Those that rank the texts of a row
work on each shard alone; those with a share of all texts, or an average over them, are barriers.
Near-duplicates and failed rows keep nothing under any policy, and of texts of a row that say the
same one is kept. A policy's `label` is its name on the command line; to add one is a class in a
file of its own and a line here.
"""

from typing import Final, get_args

from capfilt.stages.policies.blip import Select
from capfilt.stages.policies.datacomp import BasicFilter
from capfilt.stages.policies.mixed import Mixed
from capfilt.stages.policies.own import TextPolicy
from capfilt.stages.policies.ranked import Reranked, TopRanked
from capfilt.stages.policies.raw import RawWeb
from capfilt.stages.policies.shares import Fused, WebFirst

Policy = (
    Select | TopRanked | Reranked | WebFirst | BasicFilter | Fused | Mixed | RawWeb | TextPolicy
)
POLICIES: Final[dict[str, type[Policy]]] = {
    policy.label: policy for policy in get_args(Policy) if policy is not TextPolicy
}


def itm_threshold(policy: Policy) -> float | None:
    """Return the ITM probability from which a text is kept, where the policy has one."""
    return policy.threshold if isinstance(policy, Select) else None
