"""What every tissue of the phantom is: its HU before iodine, its enhancement, its organ label.

Means are those of adults at 120 kVp. HU before iodine and what iodine adds in the late arterial
(35 s) and portal venous (70 s) phase follow published ranges: blood, liver, spleen and muscle from
radiology's reference values; liver, portal phase: Naruo, Radiat Med 2007;25:106; kidney: Eur J
Radiol 2007;63:420; marrow: Perez, Abdom Radiol 2020. Heart, gut wall, hepatic veins, cartilage and
adrenals are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

__all__ = ["PHASES", "TISSUES", "Label", "Phase", "Tissue", "TissueHU", "draw_hu"]

Phase = Literal["non_contrast", "arterial", "portal"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Label(IntEnum):
    """Organ numbers of the label map: TotalSegmentator's where it has the class, else from 130."""

    AIR = 0
    SPLEEN = 1
    KIDNEY_RIGHT = 2
    KIDNEY_LEFT = 3
    GALLBLADDER = 4
    LIVER = 5
    STOMACH = 6
    PANCREAS = 7
    ADRENAL_RIGHT = 8
    ADRENAL_LEFT = 9
    OESOPHAGUS = 15
    TRACHEA = 16
    HEART = 51
    AORTA = 52
    SVC = 62
    IVC = 63
    PORTAL_VEIN = 64  # with the splenic vein, as in TotalSegmentator
    ILIAC_ARTERY_LEFT = 65
    ILIAC_ARTERY_RIGHT = 66
    SKIN = 130
    FAT = 131
    MUSCLE = 132
    BONE = 133
    CARTILAGE = 134  # discs and ribs
    SPINAL_CANAL = 135
    LUNG = 136
    BOWEL = 137
    GAS = 138  # in stomach and bowel
    OTHER_VESSEL = 139
    URINE = 140
    TABLE = 141


@dataclass(frozen=True)
class Tissue:
    """One material.

    hu: mean before iodine. arterial, portal: mean HU that iodine adds at a dose factor of 1.
    spread: standard deviation of hu between subjects. texture: standard deviation of the texture
    inside the tissue, in all phases; mottle: of a coarser one in the arterial phase only.
    """

    hu: float
    arterial: float
    portal: float
    spread: float
    texture: float
    label: Label
    mottle: float = 0.0

    @property
    def takes_iodine(self) -> bool:
        return self.arterial > 0 or self.portal > 0


TISSUES: Mapping[str, Tissue] = {
    "table_shell": Tissue(0, 0, 0, 0, 0, Label.TABLE),
    "table_core": Tissue(-930, 0, 0, 0, 0, Label.TABLE),
    "skin": Tissue(20, 0, 0, 5, 5, Label.SKIN),
    "fat": Tissue(-103, 0, 0, 3, 6, Label.FAT),
    "muscle": Tissue(50, 9, 9, 4, 8, Label.MUSCLE),
    "cortical_bone": Tissue(750, 0, 0, 60, 40, Label.BONE),
    "marrow": Tissue(150, 10, 27, 25, 25, Label.BONE),
    "disc": Tissue(85, 0, 0, 6, 6, Label.CARTILAGE),
    "cartilage": Tissue(110, 0, 0, 10, 8, Label.CARTILAGE),
    "csf": Tissue(12, 0, 0, 2, 2, Label.SPINAL_CANAL),
    "cord": Tissue(38, 0, 0, 2, 2, Label.SPINAL_CANAL),
    "lung": Tissue(-850, 10, 10, 20, 22, Label.LUNG),
    "lung_vessel": Tissue(40, 200, 110, 2.5, 0, Label.LUNG),
    "airway": Tissue(-980, 0, 0, 5, 0, Label.TRACHEA),
    "oesophagus": Tissue(38, 25, 40, 4, 6, Label.OESOPHAGUS),
    "heart_wall": Tissue(46, 60, 65, 3, 6, Label.HEART),
    "heart_right": Tissue(40, 190, 108, 2.5, 5, Label.HEART),
    "heart_left": Tissue(40, 285, 110, 2.5, 5, Label.HEART),
    "bowel_wall": Tissue(40, 40, 55, 4, 6, Label.BOWEL),
    "bowel_fluid": Tissue(18, 0, 0, 6, 8, Label.BOWEL),
    "faeces": Tissue(5, 0, 0, 15, 70, Label.BOWEL),
    "gas": Tissue(-950, 0, 0, 10, 8, Label.GAS),
    "stomach_wall": Tissue(42, 45, 60, 4, 6, Label.STOMACH),
    "stomach_fluid": Tissue(22, 0, 0, 8, 14, Label.STOMACH),
    "gallbladder_wall": Tissue(35, 25, 35, 3, 4, Label.GALLBLADDER),
    "bile": Tissue(10, 0, 0, 4, 2, Label.GALLBLADDER),
    "liver": Tissue(55, 25, 55, 4, 6, Label.LIVER),
    "spleen": Tissue(46, 75, 75, 3, 5, Label.SPLEEN, mottle=22),
    "pancreas": Tissue(40, 78, 55, 5, 9, Label.PANCREAS),
    "adrenal_right": Tissue(28, 45, 45, 4, 5, Label.ADRENAL_RIGHT),
    "adrenal_left": Tissue(28, 45, 45, 4, 5, Label.ADRENAL_LEFT),
    "cortex_right": Tissue(31, 205, 150, 2.5, 6, Label.KIDNEY_RIGHT),
    "cortex_left": Tissue(31, 205, 150, 2.5, 6, Label.KIDNEY_LEFT),
    "medulla_right": Tissue(30, 70, 144, 2.5, 6, Label.KIDNEY_RIGHT),
    "medulla_left": Tissue(30, 70, 144, 2.5, 6, Label.KIDNEY_LEFT),
    "urine": Tissue(6, 0, 0, 3, 2, Label.URINE),
    "arterial_wall": Tissue(45, 15, 40, 2, 3, Label.AORTA),
    "aorta": Tissue(40, 285, 109, 2.5, 3, Label.AORTA),
    "artery": Tissue(40, 270, 105, 2.5, 3, Label.OTHER_VESSEL),
    "iliac_artery_left": Tissue(40, 270, 105, 2.5, 3, Label.ILIAC_ARTERY_LEFT),
    "iliac_artery_right": Tissue(40, 270, 105, 2.5, 3, Label.ILIAC_ARTERY_RIGHT),
    "pulmonary_artery": Tissue(40, 190, 108, 2.5, 3, Label.OTHER_VESSEL),
    "svc": Tissue(40, 150, 105, 2.5, 4, Label.SVC),
    "ivc_infrarenal": Tissue(40, 20, 75, 2.5, 4, Label.IVC),
    "ivc_suprarenal": Tissue(40, 90, 80, 2.5, 4, Label.IVC),
    "iliac_vein": Tissue(40, 15, 70, 2.5, 4, Label.OTHER_VESSEL),
    "renal_vein": Tissue(40, 130, 110, 2.5, 3, Label.OTHER_VESSEL),
    "mesenteric_vein": Tissue(40, 95, 120, 2.5, 3, Label.OTHER_VESSEL),
    "portal_vein": Tissue(40, 105, 125, 2.5, 3, Label.PORTAL_VEIN),
    "portal_branch": Tissue(40, 100, 122, 2.5, 3, Label.LIVER),
    "hepatic_vein": Tissue(40, 20, 112, 2.5, 3, Label.LIVER),
}

_BLOOD = (
    "artery", "pulmonary_artery", "svc", "ivc_infrarenal", "ivc_suprarenal", "iliac_vein",
    "renal_vein", "mesenteric_vein", "portal_vein", "portal_branch", "hepatic_vein",
    "heart_right", "heart_left", "lung_vessel",
)  # fmt: skip

# Tissues that deviate together: all blood of one person, and the two of a pair.
_KIN = {
    "cortex_left": "cortex_right",
    "medulla_left": "medulla_right",
    "adrenal_left": "adrenal_right",
    **dict.fromkeys(_BLOOD, "aorta"),
}

# The same tissue under other labels.
_SAME = dict.fromkeys(("iliac_artery_left", "iliac_artery_right"), "artery")


@dataclass(frozen=True)
class TissueHU:
    """One subject's values of one tissue: HU before iodine and what a dose factor of 1 adds."""

    base: float
    arterial: float
    portal: float

    def at(self, phase: Phase, dose_factor: float) -> float:
        """HU in one phase. Raises ValueError for an unknown phase."""
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        added = {"non_contrast": 0.0, "arterial": self.arterial, "portal": self.portal}[phase]
        return self.base + dose_factor * added


def draw_hu(rng: np.random.Generator) -> dict[str, TissueHU]:
    """One subject's HU per tissue.

    HU before iodine vary by each tissue's spread and enhancement by 10 % (normal, cut at 2 standard
    deviations), beside the dose factor, which multiplies the enhancement of all tissues alike.
    """
    own = [name for name in TISSUES if name not in _SAME]
    deviations = {name: np.clip(rng.standard_normal(3), -2.0, 2.0) for name in own}
    drawn = {}
    for name, tissue in TISSUES.items():
        first = _SAME.get(name, name)
        base, arterial, portal = deviations[_KIN.get(first, first)]
        drawn[name] = TissueHU(
            float(tissue.hu + tissue.spread * base),
            float(tissue.arterial * (1 + 0.1 * arterial)),
            float(tissue.portal * (1 + 0.1 * portal)),
        )
    return drawn
