"""The colours in which cells 0..9 are drawn, in the terminal and in the report.

Knows nothing of how they are drawn.
"""

from enum import StrEnum

LIGHT_LUMA = 110
"""Of 255: on a lighter colour black is easier to read than white."""


class Palette(StrEnum):
    """Ten colours. Where no colours are shown (NO_COLOR, a pipe), None is passed instead of one."""

    arc = "arc"
    """Those of the ARC-AGI testing interface."""
    colourblind = "colourblind"
    """For colour-blind people: Okabe and Ito's eight, a grey and a pale pink.

    Source: M. Okabe, K. Ito, Color Universal Design, 2008.
    """

    @property
    def colours(self) -> tuple[str, ...]:
        """The ten as #RRGGBB."""
        return _COLOURS[self]

    def ink(self, cell: int) -> str:
        """Black or white, as #RRGGBB: which is easier to read on this colour."""
        red, green, blue = (int(self.colours[cell][i : i + 2], 16) for i in (1, 3, 5))
        luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
        return "#000000" if luma > LIGHT_LUMA else "#FFFFFF"


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
