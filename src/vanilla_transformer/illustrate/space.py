"""The page as a static Space of the Hub would serve it: a folder with index.html and a README.md that says so."""

from huggingface_hub import SpaceCard, SpaceCardData

FOLDER = "illustrated"  # beside a model's files
PAGE_NAME = f"{FOLDER}/index.html"
CARD_NAME = f"{FOLDER}/README.md"


def make_space(page: str, model_id: str, license: str | None = None) -> dict[str, str]:
    """Make the files of a static Space.

    Args:
        page: The page, see `make_page`.
        model_id: Id of the model's repository, or any name.
        license: As for the model card; by default none is named.

    Returns:
        Texts by their paths beside the model. The folder's content is a whole Space: what is pushed into one is served.
    """
    title = f"{model_id.rpartition('/')[2]}, opened"
    card = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        license=license,
        models=[model_id] if "/" in model_id else None,
    )
    text = (
        "The model runs in this page, and shows every step of [Attention Is All You Need]"
        "(https://arxiv.org/abs/1706.03762) with its numbers. Nothing is sent anywhere.\n"
    )
    return {PAGE_NAME: page, CARD_NAME: str(SpaceCard(f"---\n{card.to_yaml()}\n---\n\n{text}"))}
