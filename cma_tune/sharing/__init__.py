"""Learned prompts on the Hugging Face Hub."""

from cma_tune.learners.saving import from_pretrained
from cma_tune.sharing.push import push_to_hub

__all__ = ["from_pretrained", "push_to_hub"]
