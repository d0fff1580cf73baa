"""A support vector machine on pixels, with calibrated class probabilities."""

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC


def fit_svm(images: np.ndarray, labels: np.ndarray) -> CalibratedClassifierCV:
    """Return an RBF support vector machine with calibrated probabilities.

    Args:
      images: Images, (n, ...), floats in [-1, 1].
      labels: Class labels, (n,), integers.
    """
    machine = CalibratedClassifierCV(SVC(C=10.0, gamma="scale"), ensemble=False)
    return machine.fit(images.reshape(len(images), -1), labels)


def top_class(machine: CalibratedClassifierCV, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable classes, (n,), of images, (n, ...), and their probabilities, (n,)."""
    probabilities = machine.predict_proba(images.reshape(len(images), -1))
    return machine.classes_[probabilities.argmax(1)], probabilities.max(1)
