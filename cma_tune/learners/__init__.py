"""Methods that adapt a frozen backbone, one a file."""

from cma_tune.learners.base import Learner, PromptOutput, Support
from cma_tune.learners.clip_adapter import ClipAdapter
from cma_tune.learners.cocoop import CoCoOp
from cma_tune.learners.coop import CoOp
from cma_tune.learners.ivlp import Ivlp
from cma_tune.learners.kgcoop import KgCoOp
from cma_tune.learners.linear_probe import CrossModalProbe, LinearProbe, TextLinearProbe
from cma_tune.learners.lora import Lora
from cma_tune.learners.lp_plus_plus import LpPlusPlus
from cma_tune.learners.maple import MaPLe
from cma_tune.learners.prograd import ProGrad
from cma_tune.learners.promptsrc import PromptSrc
from cma_tune.learners.saving import from_pretrained, save_prompt
from cma_tune.learners.tcp import Tcp
from cma_tune.learners.tip_adapter import TipAdapter, TipAdapterF
from cma_tune.learners.vpt import Vpt
from cma_tune.learners.zero_shot import ZeroShot

__all__ = [
    "ClipAdapter",
    "CoCoOp",
    "CoOp",
    "CrossModalProbe",
    "Ivlp",
    "KgCoOp",
    "Learner",
    "LinearProbe",
    "Lora",
    "LpPlusPlus",
    "MaPLe",
    "ProGrad",
    "PromptOutput",
    "PromptSrc",
    "Support",
    "Tcp",
    "TextLinearProbe",
    "TipAdapter",
    "TipAdapterF",
    "Vpt",
    "ZeroShot",
    "from_pretrained",
    "save_prompt",
]
