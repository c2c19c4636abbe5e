"""The web demo: videos and webcams streamed in a browser, questions beside them."""

from consumers.streaming.demo.refusal import DemoRefused
from consumers.streaming.demo.registry import NoRoom, SessionRegistry
from consumers.streaming.demo.server import DemoServer, ServerOptions
from consumers.streaming.demo.session import DemoSession, SessionOptions

__all__ = [
    "DemoRefused",
    "DemoServer",
    "DemoSession",
    "NoRoom",
    "ServerOptions",
    "SessionOptions",
    "SessionRegistry",
]
