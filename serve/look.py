"""The demo's theme: the project's colours and type as a Gradio theme, light and dark, with no font from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from gradio.themes.base import Base
from gradio.themes.utils import colors, sizes
from gradio.themes.utils.fonts import LocalFont

from evals.look import COLOURS, variables


def theme() -> Base:
    """Calm surfaces, hairlines instead of shadows, one accent."""
    made = Base(
        primary_hue=colors.teal,
        neutral_hue=colors.gray,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        # Gradio ships these weights whole; its semibold holds two letters of the alphabet.
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    made.name = "foveal"
    # theme variable -> our colour; each is set for light and, with `_dark`, for dark.
    wanted = {
        "body_background_fill": "paper",
        "body_text_color": "ink",
        "body_text_color_subdued": "soft",
        "background_fill_primary": "card",
        "background_fill_secondary": "well",
        "block_background_fill": "card",
        "block_border_color": "line",
        "block_title_text_color": "ink",
        "block_label_text_color": "soft",
        "block_label_background_fill": "card",
        "block_label_border_color": "line",
        "block_info_text_color": "soft",
        "border_color_primary": "line",
        "border_color_accent": "accent",
        "color_accent": "accent",
        "color_accent_soft": "well",
        "input_background_fill": "card",
        "input_background_fill_focus": "card",
        "input_border_color": "line",
        "input_border_color_focus": "accent",
        "input_placeholder_color": "soft",
        "link_text_color": "accent",
        "loader_color": "accent",
        "slider_color": "accent",
        "button_primary_background_fill": "accent",
        "button_primary_background_fill_hover": "accent",
        "button_primary_border_color": "accent",
        "button_primary_text_color": "on-accent",
        "button_secondary_background_fill": "card",
        "button_secondary_background_fill_hover": "well",
        "button_secondary_border_color": "line",
        "button_secondary_text_color": "ink",
    }
    values = {name: COLOURS[ours][0] for name, ours in wanted.items()}
    # The accent is one value for both schemes in Gradio; the pages' own styles use `--accent`, which has two.
    values |= {f"{name}_dark": COLOURS[ours][1] for name, ours in wanted.items() if name != "color_accent"}
    values |= {
        "block_shadow": "none",
        "block_shadow_dark": "none",
        "block_border_width": "1px",
        "block_title_text_weight": "400",
        "block_radius": "10px",
        "input_radius": "8px",
        "input_shadow": "none",
        "input_shadow_dark": "none",
        "input_shadow_focus": "none",
        "input_shadow_focus_dark": "none",
        "button_large_radius": "8px",
        "button_large_text_weight": "700",
        "button_primary_shadow": "none",
        "button_primary_shadow_dark": "none",
        "button_secondary_shadow": "none",
        "button_secondary_shadow_dark": "none",
        "layout_gap": "12px",
    }
    return made.set(**values)  # pyright: ignore[reportUnknownMemberType]


def css() -> str:
    """The pages' own styles, after the colours they use."""
    sheet = (files("serve") / "pages" / "demo.css").read_text(encoding="utf-8")
    return f":root{{{variables(0)}}}.dark{{{variables(1)}}}\n{sheet}"
