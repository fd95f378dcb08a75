"""arcd's own small decoder: a Llama backbone between factorised cell tables.

While training, the embedding of a cell token is the sum of three small tables (colour, row,
column), and so is its output weight, so a colour learnt in one place is known everywhere; the
softmax over all 9000 cells factorises with it. `export` writes the sums out as ordinary flat
tables: the result is a stock Llama folder. Knows nothing of tasks or of what it is trained on.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from arcd.encoding import BEGIN, CELLS, END, PAD, SPECIALS, CellEncoding
from arcd.grids import COLOURS, MAX_SIDE
from arcd.prompts import IGNORED

SHARD = "15MB"
"""Largest file of an exported model."""


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
            (hidden @ table.T).float()
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
    """The decoder in training: tables in, Llama backbone, tables out."""

    def __init__(self, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.config = LlamaConfig(
            vocab_size=CellEncoding.vocabulary,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            # Heads of 64: the size for which every vLLM attention kernel exists.
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=context,
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
        embedded = F.embedding(tokens, self.inputs.flat())
        hidden = self.backbone(inputs_embeds=embedded, use_cache=False).last_hidden_state
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
