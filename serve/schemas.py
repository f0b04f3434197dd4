"""Requests and answers of the HTTP API, as its OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Base64Image = Annotated[
    str, Field(description="an image file in base64, alone or as a `data:image/...;base64,` URL", min_length=1)
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Request):
    """What to look for; text, an image or both."""

    text: Text | None = None
    image: Base64Image | None = None
    image_id: str | None = Field(None, description="look for images like this item of the archive")
    negative: Text | None = Field(None, description="what the images should not show")
    filter: str | None = Field(None, description="SQL over metadata columns, e.g. camera = 'north' AND hour >= 18")
    k: int = Field(10, ge=1, description="how many hits")
    image_weight: float = Field(0.5, ge=0, le=1, description="weight of the image beside a text")
    negative_weight: float = Field(0.5, ge=0, le=1)
    archive: str | None = None
    thumbnails: int | None = Field(None, ge=16, le=512, description="also return each hit as JPEG, this many pixels")

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "a red barrel on the floor", "k": 5}]}
    )


class SearchHit(BaseModel):
    id: str
    uri: str
    similarity: float = Field(description="cosine between query and image, -1 to 1")
    metadata: dict[str, str | int | float]
    image_url: str = Field(description="the picture, on this server")
    thumbnail: str | None = Field(None, description="JPEG in base64, when asked for")


class SearchAnswer(BaseModel):
    archive: str
    encoder: str
    fingerprint: str
    hits: list[SearchHit]


class ImageRequest(_Request):
    """A picture: sent along, or of an archive."""

    image: Base64Image | None = None
    image_id: str | None = Field(None, description="an item of the archive, instead of an image")
    archive: str | None = None
    model: str | None = None


class DetectRequest(ImageRequest):
    """A picture, and what to find in it."""

    prompts: list[str] | None = Field(None, description="classes as text: an open-vocabulary detector answers")
    threshold: float = Field(0.3, ge=0, le=1)


class Detected(BaseModel):
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright image")
    label: str
    score: float
    probability: float | None = Field(None, description="calibrated probability, where the model has one")


class DetectAnswer(BaseModel):
    model: str
    fingerprint: str
    width: int
    height: int
    detections: list[Detected]


class NeighbourOf(BaseModel):
    """An exemplar of the memory that speaks for a box's label, or against it."""

    id: str
    label: str | None = Field(description="null: a crop that people rejected")
    similarity: float = Field(description="cosine, -1 to 1")
    supports: bool


class Prelabelled(Detected):
    """A box as a labelling job records it."""

    route: Literal["accept", "review", "reject"]
    value: float = Field(description="what a reviewer's look at it is worth to the next model; 0 outside review")
    teachers: list[str] = Field(description="who of an ensemble proposed it")
    neighbours: list[NeighbourOf]
    attributes: dict[str, str | int | float | bool] = {}
    mask: str | None = Field(None, description="COCO run lengths as JSON, where the job draws masks")


class PrelabelAnswer(BaseModel):
    model: str
    fingerprint: str
    width: int
    height: int
    target_precision: float
    proven: bool = Field(description="whether the gold set proves that accepted boxes keep the target precision")
    boxes: list[Prelabelled] = Field(description="most probable first")


class ImageUrl(BaseModel):
    url: str


class ContentPart(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    role: str = "user"
    content: str | list[ContentPart]


class EmbeddingRequest(BaseModel):
    """OpenAI's embedding request; `messages` carries images, as vLLM has it."""

    input: str | list[str] | None = None
    messages: list[Message] | None = Field(None, description="instead of `input`: one text or one image")
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """OpenAI's model entry with what Foveal knows besides."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["foveal"] = "foveal"
    root: str = Field(description="the model reference it was loaded from")
    parent: str | None = Field(None, description="the base model, for one with an adapter")
    kind: Literal["encoder", "detector", "open-detector", "vlm", "labeller"]
    fingerprint: str
    classes: list[str] | None = None
    dimension: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ArchiveCard(BaseModel):
    name: str
    images: int
    encoder: str
    fingerprint: str
    columns: dict[str, str] = Field(description="what a filter may name, and whether it is text or a number")


class ArchiveList(BaseModel):
    archives: list[ArchiveCard]


class ErrorBody(BaseModel):
    type: str
    message: str
    expected: str | None = None
    received: str | None = None
    remedy: str | None = None


class ErrorAnswer(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request cannot be read.",
        404: "No such model, archive or item.",
        413: "The body or the image is too large.",
        422: "The request can be read, its content not used.",
    }.items()
}
