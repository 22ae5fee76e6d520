"""One picture of many beside each other: a row for each way, a column for each prompt, labelled."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels: the least side of a picture, what lies between two, the letters.
LEAST, GAP, LETTERS = 96, 4, 13


def as_pixels(image):
    """[3, height, width] in -1..1 as [height, width, 3] of bytes."""
    return np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def wrapped(text, font, width):
    """Lines of whole words, each as long as fits."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def contact_sheet(path, columns, rows):
    """Writes a PNG file. `columns` are labels, `rows` pairs of a label and as many pictures, [3, height, width] in -1..1."""
    font = ImageFont.load_default(LETTERS)
    height, width = rows[0][1][0].shape[1:]
    zoom = max(1, -(-LEAST // min(height, width)))
    height, width = zoom * height, zoom * width
    labels = [wrapped(label, font, width) for label in columns]
    line = LETTERS + 3
    left = round(max(font.getlength(label) for label, _ in rows)) + 2 * GAP
    top = line * max(map(len, labels)) + 2 * GAP
    size = (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for at, lines in enumerate(labels):
        draw.text((left + at * (width + GAP), GAP), "\n".join(lines), fill="black", font=font, spacing=3)
    for row, (label, images) in enumerate(rows):
        y = top + row * (height + GAP)
        draw.text((GAP, y + (height - LETTERS) // 2), label, fill="black", font=font)
        for at, image in enumerate(images):
            tile = Image.fromarray(as_pixels(image)).resize((width, height), Image.NEAREST)
            sheet.paste(tile, (left + at * (width + GAP), y))
    sheet.save(path, optimize=True)
