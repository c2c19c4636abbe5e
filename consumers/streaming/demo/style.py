"""The look of what `view` writes: the page's own colours, so that it fits its light and its dark mode."""

# Of Gradio's theme: small text that can be read, and buttons whose white text can.
THEME = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}

CSS = """
.vlm-notice:not(:has(.vlm-error)) { display: none; }
/* Cutting a video would load a program from elsewhere. */
#video .icon-button-wrapper button:not([aria-label=Clear]) { display: none; }
.vlm-head { font-size: 1rem; font-weight: 700; margin: 0 0 .5rem; }
.vlm-state { font-weight: 600; margin: 0 0 .5rem; }
.vlm-state::before { content: "●"; margin-right: .4rem; color: var(--body-text-color-subdued); }
.vlm-state[data-state=streaming]::before { color: #16a34a; }
.vlm-state[data-state=paused]::before, .vlm-state[data-state=held]::before { color: #d97706; }
.vlm-state[data-state=failed]::before { color: #dc2626; }
.vlm-figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(5rem, 1fr)); gap: .75rem;
  margin: 0 0 .75rem; }
.vlm-figures dt, .vlm-figures small { color: var(--body-text-color-subdued); font-size: .8rem; }
.vlm-figures dd { font-size: 1.35rem; font-weight: 600; margin: 0; font-variant-numeric: tabular-nums; }
.vlm-plot { width: 100%; height: auto; }
.vlm-plot text { fill: var(--body-text-color-subdued); font-size: 11px; }
.vlm-plot .vlm-grid { stroke: var(--border-color-primary); }
.vlm-plot polyline { fill: none; stroke: var(--color-accent); stroke-width: 2; }
.vlm-plot circle { fill: var(--color-accent); }
.vlm-stars { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .75rem; }
.vlm-stars figure { margin: 0; }
.vlm-stars img { width: 100%; aspect-ratio: 16 / 10; object-fit: contain; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); border-radius: 6px; margin: 0; }
.vlm-stars figcaption { font-size: .8rem; line-height: 1.3; }
.vlm-stars small, .vlm-exchange small { color: var(--body-text-color-subdued); }
.vlm-exchange { border-top: 1px solid var(--border-color-primary); padding: .75rem 0; overflow-wrap: anywhere; }
.vlm-exchange h4 { margin: 0 0 .25rem; }
.vlm-answer { white-space: pre-wrap; margin: 0 0 .25rem; }
.vlm-hint { color: var(--body-text-color-subdued); margin: 0; }
.vlm-error { color: #b91c1c; font-weight: 600; margin: .25rem 0; overflow-wrap: anywhere; }
.dark .vlm-error { color: #fca5a5; }
.vlm-shares { list-style: none; margin: 0 0 .25rem; padding: 0; }
.vlm-shares li { position: relative; display: flex; justify-content: space-between; gap: 1rem; margin: 0 0 .25rem;
  padding: .3rem .5rem; border: 1px solid var(--border-color-primary); border-radius: 6px; overflow: hidden; }
.vlm-shares .vlm-bar { position: absolute; inset: 0 auto 0 0; background: var(--color-accent); opacity: .18; }
.vlm-shares .vlm-best { font-weight: 700; border-color: var(--color-accent); }
"""
