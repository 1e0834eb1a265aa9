"""`croissant.json`: what the export holds, for machines (Croissant 1.1, with its RAI fields).

http://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and …/croissant-rai-spec.html.
"""

import json
from typing import Any, Final

import pyarrow as pa

from capfilt.export.card import judges_of
from capfilt.export.config import COLUMNS, ExportConfig, Provenance
from capfilt.export.formats import Parquet
from capfilt.export.place import DATA, IMAGES, SCORES
from capfilt.export.scores import TABLE
from capfilt.wording import counted, one_line

_TYPES: Final = {
    pa.string(): "sc:Text",
    pa.float32(): "cr:Float32",
    pa.int32(): "cr:Int32",
    pa.bool_(): "sc:Boolean",
}
_ENCODINGS: Final = {
    "parquet": "application/x-parquet",
    "tar": "application/x-tar",
    "json": "application/json",
}
_OTHER: Final = "application/octet-stream"
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(
    rows: int, config: ExportConfig, provenance: Provenance, version: str, scores_sha256: str
) -> bytes:
    """Return the JSON-LD; `scores_sha256` is of the table of scores that lies beside it."""
    parquet = isinstance(config.format, Parquet)
    plain = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": "image-text-pairs",
        "description": f"{counted(rows, 'row')} of images and texts, {config.format.told}.",
        "version": version,
        **({} if config.license == "unknown" else {"license": config.license}),
        **_responsible(provenance),
        "distribution": [*_distribution(config), _scores_file(scores_sha256)],
        "recordSet": [*([_pairs(config)] if parquet else []), _scores()],
    }
    return json.dumps(plain, indent=1).encode("ascii") + b"\n"


def _responsible(provenance: Provenance) -> dict[str, Any]:  # JSON
    """Return the fields of responsible AI, of what this program knows and no more."""
    told = {
        "dataCollection": f"Images and texts of {one_line(provenance.source)}, as the input lists "
        "them; images are fetched from their addresses or read from local files.",
        "dataCollectionType": "Web Scraping",
        "dataCollectionMissingData": "; ".join(
            f"{one_line(label).strip()}: {count}" for label, count in provenance.funnel
        ),
        "dataPreprocessingProtocol": "Images are scaled and encoded again, near-duplicates are "
        "dropped, and texts are kept by scores (CapFilt, arXiv 2201.12086); manifest.json has the "
        "whole recipe.",
        "machineAnnotationTools": judges_of(provenance.recipe),
        "dataLimitations": "Synthetic texts are written by a model and can be wrong; the filter "
        "lets some wrong texts pass.",
        "dataBiases": "The web's choice of pictures and words, and what captioner and filter were "
        "trained on.",
        "personalSensitiveInformation": "Not looked for: pictures and texts of the web can show "
        "and name people.",
        "dataUseCases": "Training and evaluation of vision-language models.",
    }
    return {f"rai:{name}": value for name, value in told.items() if value}


def _distribution(config: ExportConfig) -> list[dict[str, Any]]:  # JSON
    suffix = config.format.suffix
    files = [_file_set("data", f"{DATA}/{config.split}-*.{suffix}", _ENCODINGS.get(suffix, _OTHER))]
    if config.format.pictures == "beside":
        files.append(_file_set("pictures", f"{IMAGES}/*/*", "image/*"))
    return files


def _file_set(name: str, includes: str, encoding: str) -> dict[str, Any]:  # JSON
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "encodingFormat": encoding,
        "includes": includes,
    }


def _scores_file(sha256: str) -> dict[str, Any]:  # JSON
    return {
        "@type": "cr:FileObject",
        "@id": SCORES,
        "name": SCORES,
        "contentUrl": SCORES,
        "encodingFormat": _ENCODINGS["parquet"],
        "sha256": sha256,
    }


def _pairs(config: ExportConfig) -> dict[str, Any]:  # JSON
    fields = [
        _image_field() if field.name == "image" else _field("pairs", field, {"@id": "data"}, "Set")
        for field in config.columns
        if field.name == "image" or field.type in _TYPES
    ]
    return _record_set("pairs", "A row a kept text with its image.", fields)


def _image_field() -> dict[str, Any]:  # JSON
    field = _field("pairs", COLUMNS.field("image"), {"@id": "data"}, "Set")
    field["dataType"] = "sc:ImageObject"
    field["source"]["transform"] = {"jsonPath": "bytes"}
    return field


def _scores() -> dict[str, Any]:  # JSON
    fields = [_field("scores", field, {"@id": SCORES}, "Object") for field in TABLE]
    return _record_set("scores", "A row a text, kept or not, with its scores.", fields)


def _record_set(name: str, told: str, fields: list[dict[str, Any]]) -> dict[str, Any]:  # JSON
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": told,
        "field": fields,
    }


def _field(of: str, field: pa.Field, source: dict[str, str], kind: str) -> dict[str, Any]:  # JSON
    return {
        "@type": "cr:Field",
        "@id": f"{of}/{field.name}",
        "name": field.name,
        "dataType": _TYPES.get(field.type, "sc:Text"),
        "source": {f"file{kind}": source, "extract": {"column": field.name}},
    }
