"""arcd's own small model: a Llama backbone between factorised cell tables.

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
from arcd.decoder import elementwise, layers
from arcd.decoder.answers import Cells
from arcd.decoder.elementwise import EAGER
from arcd.decoder.layers import Layer, Shape
from arcd.decoder.lora import Full
from arcd.decoder.row import Row
from arcd.model.encoding import BEGIN, CELLS, END, PAD, SPECIALS, CellEncoding

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
        """log p(token), (n,), for hidden states (n, width) and tokens (n,): over all 9016."""
        every = torch.arange(SPECIALS, device=tokens.device)
        return Cells(self.special, self.colour, self.row, self.column, every)(hidden, tokens)


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * INITIAL_STD)


class CellModel(nn.Module):
    """The decoder in training: tables in, Llama backbone, tables out.

    The backbone holds the weights under their stock names, in fp32; `decoder.layers` computes with
    them in bf16. Compiling needs a C++ compiler and half a minute at the start.
    """

    def __init__(self, width: int, depth: int, context: int, *, compiled: bool = False) -> None:
        super().__init__()
        self._elementwise = elementwise.compiled() if compiled else EAGER
        # Heads of 128, or of 64 where 128 does not divide the width: every attention kernel of vLLM
        # has both sizes. Heads of 128 learn as well, and take half as long on a CPU.
        heads = width // math.gcd(width, 128)
        self.config = LlamaConfig(
            vocab_size=CellEncoding.vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=depth,
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

    def forward(self, row: Row) -> Tensor:
        """Loss in nats, (wanted,), of the row's targets."""
        hidden = F.embedding(row.tokens, self.inputs.flat()).to(torch.bfloat16)
        half = self.config.head_dim // 2
        cosine, sine = (
            both[0, :, :half] for both in self.backbone.rotary_emb(hidden, row.places[None])
        )
        states = layers.run(
            hidden,
            row,
            [self._layer(layer) for layer in self.backbone.layers],
            self._shape,
            cosine,
            sine,
            self.backbone.norm.weight,
            self._elementwise,
        )
        return -self.outputs.logprob(states, row.targets)

    @property
    def _shape(self) -> Shape:
        config = self.config
        return Shape(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )

    @staticmethod
    def _layer(layer: LlamaDecoderLayer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Layer(
            layer.input_layernorm.weight,
            Full(torch.cat([projection.weight for projection in projections])),
            Full(attention.o_proj.weight),
            layer.post_attention_layernorm.weight,
            Full(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
            Full(mlp.down_proj.weight),
        )

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
