"""Loads transformers models from a folder whose files hold exactly the model that its configuration describes.

transformers itself fills weights that are missing with random numbers and leaves out those that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.assets import quiet
from harness.core.errors import UserError, first_line, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NAMED = 3  # how many weights a message names
# Causal masks that older versions of transformers saved with the weights, as in the files of GPT-J and GPT-Neo.
MASK = re.compile(r"\.(attn|attention)\.(bias|masked_bias|causal_mask)$")


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Within, transformers is quiet, and any exception becomes a `UserError` that names `what`."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # a damaged folder can raise anything
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs its own Python code; model.trust_remote_code=true runs that of the experiment's model"
        raise UserError(f"{what}: {one_line(reason)}") from error


def load_model(kind: str, folder: Path, what: str, *, exact: bool = False, **settings: Any) -> PreTrainedModel:
    """Load a model with transformers' auto class `kind`, in eval mode, and check its weights.

    `what` names it in messages, and `settings` are further arguments of `from_pretrained`. With `exact`, the files hold
    nothing but the model; otherwise they may also hold the head of another task. Raises `UserError` for a folder that
    cannot be loaded, for weights that are missing, left over or of another shape, and for NaN or infinity in a weight.
    """
    import torch

    model = _load(kind, folder, what, exact, settings)
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta:
            total = weight.detach().sum(dtype=torch.float32)  # much faster than a look at each value
            if not total.isfinite() and not weight.isfinite().all():
                raise UserError(f"{what}: the weight {name} has NaN or infinite values; its files are damaged")
    return model.eval()


def read_tokenizer(folder: Path, what: str, **settings: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder; `what` names it in messages, `settings` are arguments of `from_pretrained`.

    Raises `UserError` for one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    with loading(what):
        return AutoTokenizer.from_pretrained(folder, **settings)


def check_files(kind: str, folder: Path, what: str, *, exact: bool = False, **settings: Any) -> PreTrainedModel:
    """Check the names and shapes of a folder's weights as `load_model` does, without reading the weights.

    Return the model without weights (on torch's meta device).
    """
    return _load(kind, folder, what, exact, {**settings, "device_map": {"": "meta"}})


def check_ids(
    ids: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, settings: PretrainedConfig, what: str
) -> None:
    """Raise `UserError` for token ids of texts that the embedding of a model with these settings does not have."""
    largest, embeddings = max(map(max, filter(None, ids)), default=0), settings.get_text_config().vocab_size
    if largest >= embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"{what}: its tokenizer has the id {largest} for {token!r}, and its embedding only {embeddings} rows; "
            "resize the embedding, or use the tokenizer that belongs to the model"
        )


def _load(kind: str, folder: Path, what: str, exact: bool, settings: Mapping[str, Any]) -> PreTrainedModel:
    import transformers

    with loading(what):
        model, report = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    base = kind == "AutoModel"  # whose pooler is not used here
    missing = [key for key in report["missing_keys"] if not (base and key.startswith("pooler."))]
    extra = [key for key in report["unexpected_keys"] if exact or _is_in_a_list(model, key)]
    extra = [key for key in extra if not MASK.search(key)]
    if missing:
        instead = f" (it has {min(report['unexpected_keys'])} instead)" if report["unexpected_keys"] else ""
        raise UserError(
            f"{what} lacks the weights {_names(missing)}{instead}; it is damaged, or another kind of model than its "
            "config.json says"
        )
    if extra:
        raise UserError(f"{what} has weights that do not belong to the model of its config.json: {_names(extra)}")
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(f"{what} has {name} in the shape {tuple(stored)}; by its config.json it is {tuple(wanted)}")
    return model


def _is_in_a_list(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight that the model does not have belongs to a list that it has: to a layer beyond its last."""
    from torch.nn import ModuleList

    modules = dict(model.named_modules())
    for name in (key, key.removeprefix(f"{model.base_model_prefix}.")):
        while name := name.rpartition(".")[0]:
            if name in modules:
                return isinstance(modules[name], ModuleList)
    return False


def _names(weights: Iterable[str]) -> str:
    names = sorted(weights)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
