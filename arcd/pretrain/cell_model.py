"""arcd's own small decoder: a Llama backbone between factorised cell tables.

The embedding of a cell token is the sum of three vectors (of its colour, its row, its column), and
so is its output weight: a colour learnt in one place is known everywhere, and the softmax over all
9000 cells factorises. `export` writes the sums into ordinary tables of one row a token, so that the
result is a stock Llama folder. Knows nothing of tasks or of how the model is trained.
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

MAX_FILE_SIZE = "15MB"
"""Largest file of an exported model; larger weights are divided over several."""

NORM_EPSILON = 1e-6
"""Added to the mean square in a norm, as in Llama."""

INITIAL_STD = 0.02
"""Standard deviation of the first table entries, as of Llama's embeddings in transformers."""


class CellTables(nn.Module):
    """Vectors of the 9016 tokens: one each for the specials, colour + row + column for cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.special = _table(SPECIALS, width)
        self.colour = _table(COLOURS, width)
        self.row = _table(MAX_SIDE, width)
        self.column = _table(MAX_SIDE, width)

    def flat(self) -> Tensor:
        """All token vectors, (9016, width), in the order of `encoding.cell_token`."""
        cells = self.colour[:, None, None] + self.row[None, :, None] + self.column[None, None, :]
        return torch.cat([self.special, cells.reshape(CELLS, -1)])

    def logprob(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p(token), (n,), for hidden states (n, width) and tokens (n,).

        Equal to the log-softmax over `flat()`. A cell's logit is the sum of three logits, so the
        log-sum-exp over all cells is the sum of those over colours, rows and columns.
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


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * INITIAL_STD)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    """logits[i, index[i]] for logits (n, choices) and an index (n,)."""
    return logits.gather(-1, index[:, None])[:, 0]


class CellModel(nn.Module):
    """The decoder in training: tables in, Llama backbone, tables out.

    The backbone holds the weights under their stock names, in fp32; `_layer` computes with them in
    bf16. On a CPU transformers' own layers take half as long again as a compiled `_layer`.
    Compiling needs a C++ compiler and half a minute at the start.
    """

    def __init__(self, width: int, layers: int, context: int, *, compiled: bool = False) -> None:
        super().__init__()
        self._layer = torch.compile(_layer) if compiled else _layer
        # Heads of 128, or of 64 where 128 does not divide the width: every attention kernel of vLLM
        # has both sizes. Heads of 128 learn as well, and take half as long on a CPU.
        heads = width // math.gcd(width, 128)
        self.config = LlamaConfig(
            vocab_size=CellEncoding.vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=context,
            rms_norm_eps=NORM_EPSILON,
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
        """Loss in nats, (labelled tokens,), of tokens and labels (batch, length), right-padded."""
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
        """Write a stock Llama folder with flat tables, weights in bf16, in files under 16 MiB."""
        with torch.device("meta"):
            stock = LlamaForCausalLM(self.config)
        weights = {f"model.{name}": value for name, value in self.backbone.state_dict().items()}
        weights["model.embed_tokens.weight"] = self.inputs.flat()
        weights["lm_head.weight"] = self.outputs.flat()
        weights = {name: value.detach().to(torch.bfloat16) for name, value in weights.items()}
        stock.load_state_dict(weights, assign=True)
        stock.config.dtype = torch.bfloat16
        stock.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors lets only the owner read them
        write_tokenizer(folder)
        (folder / "arcd.json").write_text(json.dumps({"encoding": "cells"}) + "\n")


def _weights(layer: LlamaDecoderLayer) -> tuple[Tensor, ...]:
    """The last six arguments of `_layer`."""
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
    """A causal Llama decoder layer on bf16 hidden states (batch, length, width), weights in fp32.

    `cosine` and `sine` are (length, head / 2) of the rotary embedding; `before` and `after` are the
    weights of the norms before attention and after it. `queries_keys_values` and `gate_up` are
    stacked, so that each is one matrix product.
    """
    batch, length, width = hidden.shape
    heads = _linear(_norm(hidden, before), queries_keys_values).view(batch, length, 3, -1, head)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
    q, k = _rotated(q, cosine, sine), _rotated(k, cosine, sine)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = hidden + _linear(attended.transpose(1, 2).reshape(batch, length, width), output)
    gate, up = _linear(_norm(hidden, after), gate_up).chunk(2, -1)
    return hidden + _linear(F.silu(gate) * up, down)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """The product in the number format of x."""
    return F.linear(x, weight.to(x.dtype))


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467), computed in fp32."""
    wide = x.float()
    mean_square = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + NORM_EPSILON) * weight).to(x.dtype)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864); entry i of a head turns with i + head / 2."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def write_tokenizer(folder: Path) -> None:
    """Write the tokens' names as a Hugging Face tokenizer, e.g. `3@0,12`: colour, row, column."""
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
