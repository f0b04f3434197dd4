"""Requests and answers of the HTTP API, as its OpenAPI document shows them; server and client share them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

A = TypeVar("A", bound=BaseModel)
Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Base64Image = Annotated[
    str,
    Field(
        description="an image file in base64, alone or as a `data:image/...;base64,` URL; or its address, on a host "
        "that the server may fetch from",
        min_length=1,
    ),
]

Box = tuple[float, float, float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Request(BaseModel, Generic[A]):
    """What is sent to `path`, and answered with an `A`."""

    path: ClassVar[str]


class QueryPart(_Strict):
    """One thing that the images should be like, or with a negative weight unlike: a text, an image or an item."""

    text: Text | None = None
    image: Base64Image | None = None
    image_id: str | None = Field(default=None, description="an item of the archive, by its stored vector")
    box: Box | None = Field(
        default=None, description="the crop of the image that is meant: x1, y1, x2, y2 in its pixels"
    )
    weight: float = 1.0


class NearDuplicates(_Strict):
    """What counts as the same picture twice; of each group only the best is returned."""

    cosine: float | None = Field(
        default=0.98, gt=0, le=1, description="of two vectors, from which on they are the same"
    )
    bits: int | None = Field(default=4, ge=0, le=32, description="of 64 by which two perceptual hashes differ at most")


class PartOfHit(BaseModel):
    part: str
    weight: float
    amount: float = Field(description="added to the similarity; those of all parts add up to it")


class SearchHit(BaseModel):
    id: str
    uri: str
    similarity: float = Field(description="cosine between query and image, -1 to 1")
    probability: float | None = Field(
        default=None, description="that it shows what is asked for, on a calibrated archive"
    )
    metadata: dict[str, str | int | float]
    keywords: list[str] = Field(default=[], description="the query's words that its texts contain")
    collapsed: int = Field(default=0, description="near-duplicates that it stands for")
    parts: list[PartOfHit] | None = Field(default=None, description="when `explain` is asked for")
    image_url: str = Field(description="the picture, on this server")
    thumbnail: str | None = Field(default=None, description="JPEG in base64, when asked for")


class SearchAnswer(BaseModel):
    archive: str
    encoder: str
    fingerprint: str
    hits: list[SearchHit] = Field(description="best first")
    kept: int = Field(description="images that the filter left; all of them without one")
    collapsed: int = Field(default=0, description="near-duplicates left out of this page")
    cursor: str | None = Field(default=None, description="for the next page; null on the last")
    reason: str | None = Field(default=None, description="why nothing matches; null when something does")
    notes: list[str] = Field(default=[], description="what could not be done as asked")


class SearchRequest(_Strict, Request[SearchAnswer]):
    """What to look for: a text, an image, or any number of weighted `parts`."""

    path = "/v1/search"

    text: Text | None = None
    image: Base64Image | None = None
    image_id: str | None = Field(default=None, description="look for images like this item of the archive")
    negative: Text | None = Field(default=None, description="what the images should not show")
    parts: list[QueryPart] = Field(default=[], max_length=32, description="further things to be like or unlike")
    liked: list[str] = Field(
        default=[], max_length=64, description="items that were right: the query moves towards them"
    )
    disliked: list[str] = Field(default=[], max_length=64, description="items that were wrong: the query moves away")
    words: Text | None = Field(
        default=None, description="words in names, captions and labels, ranked together with likeness"
    )
    filter: str | None = Field(default=None, description="conditions on metadata, e.g. camera = 'north' AND hour >= 18")
    k: int = Field(default=10, ge=1, description="how many hits")
    image_weight: float = Field(default=0.5, ge=0, le=1, description="weight of the image beside a text")
    negative_weight: float = Field(default=0.5, ge=0, le=1)
    templates: list[Text] = Field(
        default=[], max_length=100, description="each text is the mean over these: a photo of a {}"
    )
    collapse: NearDuplicates | None = Field(
        default=None, description="leave out near-duplicates; {} for the usual bounds"
    )
    diversity: float = Field(default=0, ge=0, lt=1, description="how much a hit should differ from those before it")
    cursor: str | None = Field(default=None, max_length=20_000, description="of the page before")
    anyway: bool = Field(default=False, description="the nearest even where nothing matches")
    explain: bool = Field(default=False, description="what each part of the query adds to the similarity of each hit")
    archive: str | None = None
    thumbnails: int | None = Field(
        default=None, ge=16, le=512, description="also return each hit as JPEG, this many pixels"
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a red barrel on the floor", "k": 5}]})


class Kept(BaseModel):
    kept: int


class FeedbackRequest(_Strict, Request[Kept]):
    """What people said of the hits of a text; `foveal archive calibrate` learns from it."""

    path = "/v1/search/feedback"

    text: Text
    right: list[str] = Field(default=[], max_length=1000, description="ids of items that show it")
    wrong: list[str] = Field(default=[], max_length=1000)
    archive: str | None = None


class ImageRequest(_Strict):
    """A picture: sent along, or of an archive."""

    image: Base64Image | None = None
    image_id: str | None = Field(default=None, description="an item of the archive, instead of an image")
    archive: str | None = None
    model: str | None = None


class Detected(BaseModel):
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright image")
    label: str
    score: float
    probability: float | None = Field(default=None, description="calibrated probability, where the model has one")


class DetectAnswer(BaseModel):
    model: str
    fingerprint: str
    version: int | None = Field(default=None, description="of the registered model that answered")
    width: int
    height: int
    detections: list[Detected]


class DetectRequest(ImageRequest, Request[DetectAnswer]):
    """A picture, and what to find in it."""

    path = "/v1/detect"

    prompts: list[str] | None = Field(default=None, description="classes as text: an open-vocabulary detector answers")
    threshold: float = Field(default=0.3, ge=0, le=1)


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
    mask: str | None = Field(default=None, description="COCO run lengths as JSON, where the job draws masks")


class PrelabelAnswer(BaseModel):
    model: str
    fingerprint: str
    width: int
    height: int
    target_precision: float
    proven: bool = Field(description="whether the gold set proves that accepted boxes keep the target precision")
    boxes: list[Prelabelled] = Field(description="most probable first")


class PrelabelRequest(ImageRequest, Request[PrelabelAnswer]):
    """A picture to label as a labelling job does."""

    path = "/v1/prelabel"


class Classified(BaseModel):
    box: Box
    label: str | None = Field(description="the most probable class; null: none of the memory's")
    probability: float
    probabilities: dict[str, float] = Field(description="of each class; what is missing to 1 is that it is none")


class ClassifyAnswer(BaseModel):
    model: str
    fingerprint: str
    results: list[Classified]


class ClassifyRequest(ImageRequest, Request[ClassifyAnswer]):
    """A picture, and where in it to look."""

    path = "/v1/classify"

    boxes: list[Box] | None = Field(default=None, max_length=256, description="the whole picture by default")


class Proposal(_Strict):
    box: Box
    label: Text


class Verified(BaseModel):
    box: Box
    label: str
    support: float = Field(description="share of the nearest remembered crops' vote that the label has, 0 to 1")
    neighbours: list[NeighbourOf]


class VerifyAnswer(BaseModel):
    model: str
    fingerprint: str
    results: list[Verified]


class VerifyRequest(ImageRequest, Request[VerifyAnswer]):
    """A picture, and labels proposed for boxes in it."""

    path = "/v1/verify"

    proposals: list[Proposal] = Field(min_length=1, max_length=256)


class CitedImage(BaseModel):
    id: str
    uri: str
    image_url: str
    similarity: float
    probability: float | None
    answer: str | None = Field(description="what the model says of it; null when it was not asked")
    weight: float = Field(description="its share of the vote")
    supports: bool = Field(description="whether it says what the whole answer says")
    shows: bool | None = Field(description="whether the model sees in it what was searched for")
    reason: str | None = Field(description="why it could not be looked at")


class AskAnswer(BaseModel):
    model: str
    text: str = Field(description="empty when nothing can be said")
    places: list[Detected] | None = Field(
        default=None, description="where, for a picture that was asked where something is"
    )
    searched: str | None = Field(default=None, description="what the archive was searched for")
    citations: list[CitedImage] = Field(default=[], description="the images that the answer rests on, best match first")
    agreement: float | None = Field(default=None, description="share of the vote for the answer")
    nothing: bool = Field(
        default=False, description="the archive seems to hold nothing that the question could be about"
    )
    reason: str | None = Field(default=None, description="why there is no answer")
    notes: list[str] = []


class AskRequest(_Strict, Request[AskAnswer]):
    """A question about an archive, or about one picture where one is given."""

    path = "/v1/ask"

    question: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    image: Base64Image | None = None
    image_id: str | None = None
    k: int = Field(default=4, ge=1, le=64, description="images of the archive that are looked at")
    about: Text | None = Field(default=None, description="what to search for instead of the question's own words")
    filter: str | None = Field(default=None, description="which images may be used, over their metadata")
    archive: str | None = None
    model: str | None = None


class ImageUrl(BaseModel):
    url: str


class ContentPart(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    role: str = "user"
    content: str | list[ContentPart]


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


class EmbeddingRequest(Request[EmbeddingAnswer]):
    """OpenAI's embedding request; `messages` carries images, as vLLM has it."""

    path = "/v1/embeddings"

    input: str | list[str] | None = None
    messages: list[Message] | None = Field(default=None, description="instead of `input`: one text or one image")
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Item(BaseModel):
    """One image of an archive."""

    id: str
    uri: str
    content_hash: str
    width: int
    height: int
    metadata: dict[str, str | int | float]
    archive: str


class AddedItem(BaseModel):
    name: str = Field(description="the file name that was sent")
    id: str
    status: Literal["added", "updated", "unchanged"]


class RejectedItem(BaseModel):
    name: str
    reason: str


class ItemsAnswer(BaseModel):
    archive: str
    items: list[AddedItem] = Field(description="what is in the archive now, for good")
    rejected: list[RejectedItem] = Field(default=[], description="what could not be read")
    notes: list[str] = Field(default=[], description="metadata that could not be used as given")


class Job(BaseModel):
    """Pictures on their way from the web into an archive."""

    id: str
    archive: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    total: int = Field(description="addresses that were given")
    added: int
    updated: int = Field(description="were there before, and have other metadata now")
    unchanged: int
    rejected: int
    progress: float = Field(description="share of the addresses that are done with, 0 to 1")
    reasons: list[RejectedItem] = Field(default=[], description="why the first of the rejected were")
    error: str | None = Field(default=None, description="why it failed as a whole")
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None


class JobList(BaseModel):
    jobs: list[Job] = Field(description="the newest first")


class JobRequest(_Strict, Request[Job]):
    """Addresses of pictures to fetch into an archive; see `GET /v1/jobs/{id}` for what becomes of them."""

    path = "/v1/jobs"

    urls: list[Annotated[str, StringConstraints(min_length=1, max_length=2048)]] = Field(
        min_length=1, max_length=10_000
    )
    metadata: dict[str, str | int | float] = Field(default={}, description="of all of them")
    archive: str | None = None


class ModelCard(BaseModel):
    """OpenAI's model entry with what Foveal knows besides."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["foveal"] = "foveal"
    root: str = Field(description="the model reference it was loaded from")
    parent: str | None = Field(default=None, description="the base model, for one with an adapter")
    kind: Literal["encoder", "detector", "open-detector", "vlm", "labeller", "memory"]
    fingerprint: str
    classes: list[str] | None = None
    dimension: int | None = None
    logit_scale: float | None = Field(default=None, description="of an encoder: what a cosine is multiplied by")


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
        401: "A key is wanted.",
        403: "The key is not for this.",
        404: "No such model, archive or item.",
        409: "Vectors of another encoder.",
        413: "The body or the image is too large.",
        422: "The request can be read, its content not used.",
        429: "The key asks too often; `Retry-After` says when to ask again.",
        503: "Not ready, or too much going on; `Retry-After` says when to ask again.",
    }.items()
}


class VersionCard(BaseModel):
    """A loaded version of a registered model, and how its recent requests went."""

    version: int
    role: Literal["production", "canary", "shadow", "previous"]
    fingerprint: str
    gate_passed: bool | None = Field(default=None, description="by its manifest")
    asked: int = Field(description="requests and comparisons in this role")
    errors: int = Field(description="of the recent ones")
    p50_ms: float | None = None
    p95_ms: float | None = None
    compared: int = Field(description="recent pictures that the other version saw too")
    disagreement: float | None = Field(default=None, description="mean of 1 - F1 of its boxes against the other's")


class AliasEvent(BaseModel):
    """One change of an alias in the registry."""

    at: datetime
    alias: str
    action: Literal["promote", "rollback", "withdraw"]
    version: int
    reason: str | None = None


class RolloutCard(BaseModel):
    """A registered model that the server follows."""

    name: str = Field(description="as requests call it")
    model: str = Field(description="as the registry calls it")
    alias: str
    share: float = Field(description="of the requests that a canary answers or a shadow is compared on")
    bars: dict[str, float]
    versions: list[VersionCard]
    refused: dict[int, str] = Field(description="versions that are out, and why")
    events: list[AliasEvent] = Field(description="the latest changes, newest first")


class VersionsAnswer(BaseModel):
    rollouts: list[RolloutCard]


ANSWERS: dict[type[Request[Any]], type[BaseModel]] = {
    SearchRequest: SearchAnswer,
    FeedbackRequest: Kept,
    DetectRequest: DetectAnswer,
    PrelabelRequest: PrelabelAnswer,
    ClassifyRequest: ClassifyAnswer,
    VerifyRequest: VerifyAnswer,
    AskRequest: AskAnswer,
    EmbeddingRequest: EmbeddingAnswer,
    JobRequest: Job,
}
