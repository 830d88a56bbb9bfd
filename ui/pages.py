"""The page: one constant Gradio shell that our own script fills.

The shell never receives run text. Gradio renders a component's value through a template that would execute `${...}` in it, so what
agents wrote goes from /api straight into text nodes (static/*.js), and no Gradio value ever holds it.
"""

import os

# Read when Blocks are built: no telemetry, no version check. Whether the hub may be asked is not for the page to say: trainings that are
# started here inherit what is set, and fetch a base as they do on the command line.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

SHELL = '<div class="aa" data-view="loading"><p class="aa-loading">Loading …</p></div>'

# The import is relative to the server, so every path that the script loads stays on this origin.
START = "import('{main}').then((page) => page.adopt(element.querySelector('.aa')));"


def build_blocks(main: str) -> gr.Blocks:
    """The one page as Gradio blocks; `main` is the address of its script."""
    start = START.format(main=main)
    with gr.Blocks(title="agentalign", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(value="", html_template=SHELL, js_on_load=start, apply_default_css=False, padding=False, elem_id="aa-shell")
    return blocks


def theme() -> gr.themes.Base:
    """Fonts of the machine: Gradio's bundled ones lack glyphs in bold, and others would be fetched from elsewhere."""
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
