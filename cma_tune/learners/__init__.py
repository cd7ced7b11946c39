"""Methods that adapt a frozen backbone, one a file."""

from cma_tune.learners.base import Learner, PromptOutput
from cma_tune.learners.cocoop import CoCoOp
from cma_tune.learners.coop import CoOp
from cma_tune.learners.saving import from_pretrained, save_prompt
from cma_tune.learners.zero_shot import ZeroShot

__all__ = ["CoCoOp", "CoOp", "Learner", "PromptOutput", "ZeroShot", "from_pretrained", "save_prompt"]
