"""Writes sklearn.json: reference results of scikit-learn and numpy for a few points.

    pip install scikit-learn numpy
    python generate.py

The points are two overlapping clouds in 12 dimensions, drawn here; no other data is involved.
"""

import json

import numpy as np
import sklearn
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import balanced_accuracy_score, pairwise_distances, silhouette_score

rng = np.random.default_rng(7)
n, width, perplexity, folds = 60, 12, 12.0, 5
kinds = np.arange(n) % 5 < 2
points = rng.normal(size=(n, width)) * np.linspace(3.0, 0.5, width)
points[kinds] += rng.normal(size=width) * 1.1
points = points.astype(np.float32).astype(np.float64)

pca = PCA().fit(points)


def decision(fitted, asked):
    train = points[fitted]
    centred = train - train.mean(axis=0)
    alpha = 1e-3 * (centred**2).sum() / len(train)
    return RidgeClassifier(alpha=alpha, solver="cholesky").fit(train, kinds[fitted]).decision_function(points[asked])


fold = np.empty(n, dtype=int)
for kind in (False, True):
    fold[kinds == kind] = np.arange((kinds == kind).sum()) % folds
predicted = np.empty(n, dtype=bool)
for f in range(folds):
    predicted[fold == f] = decision(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) > 0

half = n // 2
tsne = TSNE(method="exact", init="pca", perplexity=perplexity, max_iter=1000, random_state=0).fit(points)
distances = pairwise_distances(points, squared=True).astype(np.float32)
condensed = _joint_probabilities(distances, perplexity, 0)

gram = points @ points.T
eigenvalues = np.linalg.eigvalsh(gram / np.trace(gram))
eigenvalues = eigenvalues[eigenvalues > 1e-12]

result = {
    "sklearn": sklearn.__version__,
    "points": points.tolist(),
    "kinds": kinds.tolist(),
    "explained_variance_ratio": pca.explained_variance_ratio_.tolist(),
    "components": pca.components_.tolist(),
    "silhouette": float(silhouette_score(points, kinds)),
    "balanced_accuracy": float(balanced_accuracy_score(kinds, predicted)),
    "decision_of_second_half": decision(np.arange(half), np.arange(half, n)).tolist(),
    "perplexity": perplexity,
    "joint_probabilities_of_first": [0.0] + condensed[: n - 1].tolist(),
    "kl_divergence": float(tsne.kl_divergence_),
    "entropy": float(-(eigenvalues * np.log(eigenvalues)).sum()),
}
with open("sklearn.json", "w") as file:
    json.dump(result, file)
    file.write("\n")
