"""CoCoOp: a context shifted by a small network of the image (Zhou et al. 2022, CVPR)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.learners.starts import drawn_from


class CoCoOp(ContextLearner):
    """Context of image x: v_m + π(x), with the meta-net π = Linear(D→D/16), ReLU, Linear(→W) (CoCoOp, eq. 4).

    Raises:
        UserError: `options` ask for class-specific contexts.
    """

    name = "cocoop"
    conditioned_on_image = True

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        options: ContextOptions | None = None,
        seed: int = 0,
        context: nn.Parameter | None = None,
        meta_net: nn.Sequential | None = None,
    ) -> None:
        if options is not None and options.per_class:
            raise UserError(
                "Expected a shared context for CoCoOp, got class-specific contexts; "
                "set --context.per-class false."
            )
        super().__init__(backbone, class_names, options, seed, context)
        if meta_net is None:
            features = backbone.encode_texts(["a"]).shape[-1]
            meta_net = _meta_net(features, backbone.tower.width, seed).to(backbone.device)
        self.meta_net = meta_net

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[B, C, D]`` for image features ``[B, D]``."""
        if image_features is None:
            raise ValueError("Expected image features: CoCoOp's text is conditioned on the image, got None.")
        shift: Tensor = self.meta_net(image_features.to(self.context.dtype))  # [B, W]
        contexts: Tensor = self.context + shift[:, None, :]  # [B, M, W]
        classes = len(self.class_names)
        if not len(contexts):
            return image_features.new_zeros(0, classes, image_features.shape[-1]) + 0 * contexts.sum()
        return self.prompts.encode(contexts)

    def for_classes(self, class_names: Sequence[str]) -> CoCoOp:
        """The learned context and meta-net over other names; the parameters are shared, not copied."""
        return CoCoOp(self.backbone, class_names, self.options, context=self.context, meta_net=self.meta_net)


def _meta_net(features: int, width: int, seed: int) -> nn.Sequential:
    """The meta-net with torch's default start, drawn from `seed` without touching the global generator."""
    hidden = max(1, features // 16)
    with drawn_from(seed):
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))
