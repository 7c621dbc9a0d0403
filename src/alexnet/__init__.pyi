"""The public names of the package: lazy_loader reads this file, and so do type checkers."""

from .api import Callback as Callback
from .api import compress as compress
from .api import evaluate as evaluate
from .api import load as load
from .api import plot as plot
from .api import prepare as prepare
from .api import train as train
from .api import write_report as write_report
from .api.networks import create_model as create_model
from .errors import AlexNetError as AlexNetError
from .export.batch_prediction import predict_files as predict_files
from .export.batch_prediction import stream_predictions as stream_predictions
from .export.classifier import Classifier as Classifier
from .export.classifier import from_pretrained as from_pretrained
from .export.export import export_model as export_model
from .export.exported_model import ExportedModel as ExportedModel
from .export.prediction import Prediction as Prediction
from .export.timm_folder import register_timm as register_timm
from .export.verify import verify as verify
from .models import list_models as list_models
from .recipe import Recipe as Recipe

__version__: str
