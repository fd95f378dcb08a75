"""The colours 0..9 of the cells, for whoever draws them.

Knows nothing of what draws.
"""

from enum import StrEnum


class Palette(StrEnum):
    """Ten colours. Where there is none (NO_COLOR, a pipe), None stands in its place: digits."""

    arc = "arc"
    """As the ARC-AGI testing interface shows them."""
    colourblind = "colourblind"
    """Told apart by those who see fewer colours: Okabe and Ito's eight, grey and a pale pink.

    Source: M. Okabe, K. Ito, Color Universal Design, 2008.
    """

    @property
    def colours(self) -> tuple[str, ...]:
        """The ten as #RRGGBB."""
        return _COLOURS[self]

    def ink(self, cell: int) -> str:
        """What is read best on a cell of this colour: black or white, as #RRGGBB."""
        red, green, blue = (int(self.colours[cell][i : i + 2], 16) for i in (1, 3, 5))
        # Luma of ITU-R BT.601.
        return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#FFFFFF"


_COLOURS = {
    Palette.arc: (
        "#000000",
        "#0074D9",
        "#FF4136",
        "#2ECC40",
        "#FFDC00",
        "#AAAAAA",
        "#F012BE",
        "#FF851B",
        "#7FDBFF",
        "#870C25",
    ),
    Palette.colourblind: (
        "#000000",
        "#0072B2",
        "#D55E00",
        "#009E73",
        "#F0E442",
        "#999999",
        "#CC79A7",
        "#E69F00",
        "#56B4E9",
        "#FBE3EC",
    ),
}
