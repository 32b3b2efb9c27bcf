from layerdiffuse_mcp.families.entries import GB, MB, LoraEntry, ModelEntry, in_words
from layerdiffuse_mcp.families.entries import HubFile as RemoteFile

__all__ = ["GB", "MB", "LoraEntry", "ModelEntry", "RemoteFile", "in_words"]
