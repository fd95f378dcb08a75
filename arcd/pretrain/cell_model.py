"""arcd's own small decoder: a Llama backbone between factorised cell tables.

While training, the embedding of a cell token is the sum of three small tables (colour, row,
column), and so is its output weight, so a colour learnt in one place is known everywhere; the
softmax over all 9000 cells factorises with it. `export` writes the sums out as ordinary flat
tables: the result is a stock Llama folder. Knows nothing of tasks or of what it is trained on.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from arcd.arc.grids import COLOURS, MAX_SIDE
from arcd.model.encoding import BEGIN, CELLS, END, PAD, SPECIALS, CellEncoding
from arcd.model.prompts import IGNORED

SHARD = "15MB"
"""Largest file of an exported model."""


EPSILON = 1e-6
"""Of the root mean square in a norm; Llama's."""


class CellTables(nn.Module):
    """Vectors of the 9016 tokens: `special` as they are, cells as colour + row + column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.special = nn.Parameter(torch.randn(SPECIALS, width) * 0.02)
        self.colour = nn.Parameter(torch.randn(COLOURS, width) * 0.02)
        self.row = nn.Parameter(torch.randn(MAX_SIDE, width) * 0.02)
        self.column = nn.Parameter(torch.randn(MAX_SIDE, width) * 0.02)

    def flat(self) -> Tensor:
        """All token vectors, (9016, width), in the order of `encoding.cell_token`."""
        cells = self.colour[:, None, None] + self.row[None, :, None] + self.column[None, None, :]
        return torch.cat([self.special, cells.reshape(CELLS, -1)])

    def logprob(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p(token) for hidden states (n, width) and tokens (n,), as over the flat table.

        The log-sum-exp over all cells is that of the colours + that of the rows + that of the
        columns, because a cell's logit is the sum of its three.
        """
        special, colour, row, column = (
            _linear(hidden, table).float()
            for table in (self.special, self.colour, self.row, self.column)
        )
        cells = colour.logsumexp(-1) + row.logsumexp(-1) + column.logsumexp(-1)
        total = torch.logaddexp(special.logsumexp(-1), cells)
        place = (tokens - SPECIALS).clamp(min=0)
        cell = (
            _pick(colour, place // (MAX_SIDE * MAX_SIDE))
            + _pick(row, place // MAX_SIDE % MAX_SIDE)
            + _pick(column, place % MAX_SIDE)
        )
        return (
            torch.where(tokens < SPECIALS, _pick(special, tokens.clamp(max=SPECIALS - 1)), cell)
            - total
        )


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(-1, index[:, None])[:, 0]


class CellModel(nn.Module):
    """The decoder in training: tables in, Llama backbone, tables out.

    The backbone holds the weights under their stock names, in fp32, and computes in bf16. It is
    not called: transformers' layers take half as long again on a CPU as `_layer`, compiled, which
    needs a C++ compiler and half a minute at the start.
    """

    def __init__(self, width: int, layers: int, context: int, *, compiled: bool = False) -> None:
        super().__init__()
        self._layer = torch.compile(_layer) if compiled else _layer
        # Heads of 128, or of 64, the sizes for which every vLLM attention kernel exists. The larger
        # ones learn as well, and attention takes half as long on a CPU.
        heads = width // math.gcd(width, 128)
        self.config = LlamaConfig(
            vocab_size=CellEncoding.vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=context,
            rms_norm_eps=EPSILON,
            tie_word_embeddings=False,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        self.backbone = LlamaModel(self.config)
        del self.backbone.embed_tokens
        self.inputs = CellTables(width)
        self.outputs = CellTables(width)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Nats for each labelled token of right-padded (batch, length) tokens and labels."""
        hidden = F.embedding(tokens, self.inputs.flat()).to(torch.bfloat16)
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        cosine, sine = (
            both[0].chunk(2, -1)[0] for both in self.backbone.rotary_emb(hidden, places)
        )
        for layer in self.backbone.layers:
            hidden = self._layer(hidden, cosine, sine, self.config.head_dim, *_weights(layer))
        hidden = _norm(hidden, self.backbone.norm.weight)
        wanted = labels[:, 1:] != IGNORED
        result: Tensor = -self.outputs.logprob(hidden[:, :-1][wanted], labels[:, 1:][wanted])
        return result

    def export(self, folder: Path) -> None:
        """Write a stock Llama folder in bf16, its tables flat, in files under 16 MiB."""
        with torch.device("meta"):
            stock = LlamaForCausalLM(self.config)
        weights = {f"model.{name}": value for name, value in self.backbone.state_dict().items()}
        weights["model.embed_tokens.weight"] = self.inputs.flat()
        weights["lm_head.weight"] = self.outputs.flat()
        weights = {name: value.detach().to(torch.bfloat16) for name, value in weights.items()}
        stock.load_state_dict(weights, assign=True)
        stock.config.dtype = torch.bfloat16
        stock.save_pretrained(folder, max_shard_size=SHARD)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # they are written readable by their owner only
        write_tokenizer(folder)
        (folder / "arcd.json").write_text(json.dumps({"encoding": "cells"}) + "\n")


def _weights(layer: LlamaDecoderLayer) -> tuple[Tensor, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        layer.input_layernorm.weight,
        torch.cat([projection.weight for projection in projections]),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        mlp.down_proj.weight,
    )


def _layer(
    hidden: Tensor,
    cosine: Tensor,
    sine: Tensor,
    head: int,
    before: Tensor,
    queries_keys_values: Tensor,
    output: Tensor,
    after: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """A Llama decoder layer on bf16 hidden states (batch, length, width), causal, weights fp32."""
    batch, length, width = hidden.shape
    heads = _linear(_norm(hidden, before), queries_keys_values).view(batch, length, 3, -1, head)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
    q, k = _rotated(q, cosine, sine), _rotated(k, cosine, sine)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = hidden + _linear(attended.transpose(1, 2).reshape(batch, length, width), output)
    gate, up = _linear(_norm(hidden, after), gate_up).chunk(2, -1)
    return hidden + _linear(F.silu(gate) * up, down)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    size = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(size + EPSILON) * weight).to(x.dtype)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """With positions in it: the second half of a head is the partner of its first half."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def write_tokenizer(folder: Path) -> None:
    """The tokens' names as a Hugging Face tokenizer, e.g. `3@0,12`: colour, row, column."""
    specials = ["<pad>", "<begin>", "<end>", "<newline>", "<input>", "<output>"]
    specials += [f"<free{i}>" for i in range(len(specials), SPECIALS)]
    cells = [
        f"{colour}@{row},{column}"
        for colour in range(COLOURS)
        for row in range(MAX_SIDE)
        for column in range(MAX_SIDE)
    ]
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(specials + cells)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": specials[BEGIN],
                "eos_token": specials[END],
                "pad_token": specials[PAD],
                "clean_up_tokenization_spaces": False,
            },
            indent=1,
        )
        + "\n"
    )
