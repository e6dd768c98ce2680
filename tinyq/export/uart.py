"""The UART of bare firmware, from the board's file."""

from __future__ import annotations

from tinyq.build.uart import BAUD, uart_source
from tinyq.export.source import Source
from tinyq.target import Board


def has_uart(board: Board) -> bool:
    """Whether tinyq can set up the board's UART."""
    return board.console is not None and board.console.ready


def uart_files(source: Source, board: Board, baud: int = BAUD) -> dict[str, bytes]:
    """``board/uart.c`` and what reports through it; nothing where the UART is not known.

    Raises TQ303 for a baud rate that the UART's clock does not give within 2.5%.
    """
    if board.console is None or not has_uart(board):
        return {}
    return {
        "board/uart.c": uart_source(board.title, board.console, baud).encode("utf-8"),
        "board/uart.h": source.text("bare/uart.h"),
        "board/port_uart.c": source.text("bare/port_uart.c"),
    }
