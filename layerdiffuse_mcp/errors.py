"""Every error a user can meet, in one tree.

    LayerDiffuseError
    ├── InvalidRequest        a parameter is out of range, or parameters contradict each other
    ├── AccessDenied          a path lies outside the folders that may be read or written
    ├── ImageError            a picture or latent file cannot be used as what it was given for
    ├── OutputError           the output folder cannot be written
    ├── ModelError
    │   ├── ModelNotFound     no model of that name, or it has not been prepared yet
    │   ├── CheckpointError   a base model file is damaged or of another kind
    │   ├── LayerFileError    a layer, LoRA or transparency file is damaged or does not fit
    │   ├── DownloadError     a file could not be fetched or failed its check
    │   └── ConsentNeeded     a file may not be fetched before somebody agrees
    ├── OutOfMemory           the request does not fit the device
    ├── Cancelled             the job was stopped on request
    └── JobError
        ├── JobNotFound       no job of that id
        ├── QueueFull         too many jobs wait already
        ├── ServerEnding      the server takes no new jobs, for it is about to end
        ├── WorkerDied        the process that ran the job ended
        │   └── WorkerLost    because its machine went away
        └── Interrupted       the server ended before the job was done

A message is one or two sentences: what was wrong, what is allowed, what to do next.
All of them take the message alone, so they survive the way between processes. What was given
is repeated with `quoted`, never as a whole.
"""


class LayerDiffuseError(Exception):
    """The root: anything that we raise on purpose.

    `code` names the kind of error to programs; the message is for agents and people.
    """

    code = "error"


class InvalidRequest(LayerDiffuseError):
    """A parameter is out of range, or parameters contradict each other."""

    code = "invalid_request"


class AccessDenied(LayerDiffuseError):
    """A path lies outside the folders that may be read or written."""

    code = "access_denied"


class ImageError(LayerDiffuseError):
    """A picture or latent file cannot be used as what it was given for."""

    code = "image_error"


class OutputError(LayerDiffuseError):
    """The output folder cannot be written."""

    code = "output_error"


class ModelError(LayerDiffuseError):
    """Something is wrong with a model file."""

    code = "model_error"


class ModelNotFound(ModelError):
    """No model of that name, or it has not been prepared yet."""

    code = "model_not_found"


class CheckpointError(ModelError):
    """A base model file is damaged or of another kind."""

    code = "checkpoint_error"


class LayerFileError(ModelError):
    """A layer, LoRA or transparency file is damaged or does not fit."""

    code = "layer_file_error"


class DownloadError(ModelError):
    """A file could not be fetched or failed its check."""

    code = "download_error"


class ConsentNeeded(ModelError):
    """A file may not be fetched before somebody agrees."""

    code = "consent_needed"


class OutOfMemory(LayerDiffuseError):
    """The request does not fit the device."""

    code = "out_of_memory"


class Cancelled(LayerDiffuseError):
    """The job was stopped on request."""

    code = "cancelled"


class JobError(LayerDiffuseError):
    """Something is wrong with a job rather than with what it asks for."""

    code = "job_error"


class JobNotFound(JobError):
    """No job of that id."""

    code = "job_not_found"


class QueueFull(JobError):
    """Too many jobs wait already."""

    code = "queue_full"


class ServerEnding(JobError):
    """The server takes no new jobs, for it is about to end."""

    code = "server_ending"


class WorkerDied(JobError):
    """The process that ran the job ended."""

    code = "worker_died"


class WorkerLost(WorkerDied):
    """The machine that ran the job went away, which says nothing against the job: it can be run elsewhere."""


class Interrupted(JobError):
    """The server ended before the job was done."""

    code = "interrupted"
