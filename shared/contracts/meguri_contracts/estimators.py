"""What a spec may name as estimator, by task, with its parameters: all that training has been seen to train and to serve.

Training builds them; whoever applies a spec is told at once when it names another, or a parameter that there is not. A test of
training says that this is what scikit-learn has.
"""

from collections.abc import Iterable

from meguri_contracts.errors import Invalid

OURS = {
    "n_jobs": "a fit has one core; add replicas instead",
    "novelty": "a model is always asked about new rows here",
    "random_state": "it is validation.seed",
    "probability": "every classifier gives probabilities here",
}
"""Parameters that are not the spec's to set, and why."""


def check(task: str, name: str, params: Iterable[str]) -> None:
    """Raise Invalid unless there is such an estimator for the task, and it has these parameters."""
    if name not in ESTIMATORS[task]:
        raise Invalid(f"estimator.name: {name!r} is unknown; for {task} there are {', '.join(ESTIMATORS[task])}")
    known = ESTIMATORS[task][name].split()
    for param in params:
        if param in OURS:
            raise Invalid(f"estimator.params: {param} cannot be set: {OURS[param]}")
        if param not in known:
            raise Invalid(f"estimator.params: {name} has no {param!r}; it has {', '.join(known)}")


ESTIMATORS: dict[str, dict[str, str]] = {
    "classification": {
        "AdaBoostClassifier": "estimator learning_rate n_estimators",
        "BaggingClassifier": (
            "bootstrap bootstrap_features estimator max_features max_samples n_estimators oob_score verbose warm_start"
        ),
        "BernoulliNB": "alpha binarize class_prior fit_prior force_alpha",
        "ComplementNB": "alpha class_prior fit_prior force_alpha norm",
        "DecisionTreeClassifier": (
            "ccp_alpha class_weight criterion max_depth max_features max_leaf_nodes min_impurity_decrease "
            "min_samples_leaf min_samples_split min_weight_fraction_leaf monotonic_cst splitter"
        ),
        "ExtraTreesClassifier": (
            "bootstrap ccp_alpha class_weight criterion max_depth max_features max_leaf_nodes max_samples "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "monotonic_cst n_estimators oob_score verbose warm_start"
        ),
        "GaussianNB": "priors var_smoothing",
        "GradientBoostingClassifier": (
            "ccp_alpha criterion init learning_rate loss max_depth max_features max_leaf_nodes "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "n_estimators n_iter_no_change subsample tol validation_fraction verbose warm_start"
        ),
        "HistGradientBoostingClassifier": (
            "categorical_features class_weight early_stopping interaction_cst l2_regularization "
            "learning_rate loss max_bins max_depth max_features max_iter max_leaf_nodes min_samples_leaf "
            "monotonic_cst n_iter_no_change scoring tol validation_fraction verbose warm_start"
        ),
        "KNeighborsClassifier": "algorithm leaf_size metric metric_params n_neighbors p weights",
        "LinearDiscriminantAnalysis": (
            "covariance_estimator n_components priors shrinkage solver store_covariance tol"
        ),
        "LinearSVC": (
            "C class_weight dual fit_intercept intercept_scaling loss max_iter multi_class penalty tol verbose"
        ),
        "LogisticRegression": (
            "C class_weight dual fit_intercept intercept_scaling l1_ratio max_iter penalty solver tol "
            "verbose warm_start"
        ),
        "MLPClassifier": (
            "activation alpha batch_size beta_1 beta_2 early_stopping epsilon hidden_layer_sizes "
            "learning_rate learning_rate_init max_fun max_iter momentum n_iter_no_change "
            "nesterovs_momentum power_t shuffle solver tol validation_fraction verbose warm_start"
        ),
        "MultinomialNB": "alpha class_prior fit_prior force_alpha",
        "NearestCentroid": "metric priors shrink_threshold",
        "NuSVC": (
            "break_ties cache_size class_weight coef0 decision_function_shape degree gamma kernel "
            "max_iter nu shrinking tol verbose"
        ),
        "Perceptron": (
            "alpha class_weight early_stopping eta0 fit_intercept l1_ratio max_iter n_iter_no_change "
            "penalty shuffle tol validation_fraction verbose warm_start"
        ),
        "QuadraticDiscriminantAnalysis": (
            "covariance_estimator priors reg_param shrinkage solver store_covariance tol"
        ),
        "RandomForestClassifier": (
            "bootstrap ccp_alpha class_weight criterion max_depth max_features max_leaf_nodes max_samples "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "monotonic_cst n_estimators oob_score verbose warm_start"
        ),
        "RidgeClassifier": "alpha class_weight copy_X fit_intercept max_iter positive solver tol",
        "SGDClassifier": (
            "alpha average class_weight early_stopping epsilon eta0 fit_intercept l1_ratio learning_rate "
            "loss max_iter n_iter_no_change penalty power_t shuffle tol validation_fraction verbose "
            "warm_start"
        ),
        "SVC": (
            "C break_ties cache_size class_weight coef0 decision_function_shape degree gamma kernel "
            "max_iter shrinking tol verbose"
        ),
    },
    "regression": {
        "ARDRegression": (
            "alpha_1 alpha_2 compute_score copy_X fit_intercept lambda_1 lambda_2 max_iter threshold_lambda tol verbose"
        ),
        "AdaBoostRegressor": "estimator learning_rate loss n_estimators",
        "BaggingRegressor": (
            "bootstrap bootstrap_features estimator max_features max_samples n_estimators oob_score verbose warm_start"
        ),
        "BayesianRidge": (
            "alpha_1 alpha_2 alpha_init compute_score copy_X fit_intercept lambda_1 lambda_2 lambda_init "
            "max_iter tol verbose"
        ),
        "DecisionTreeRegressor": (
            "ccp_alpha criterion max_depth max_features max_leaf_nodes min_impurity_decrease "
            "min_samples_leaf min_samples_split min_weight_fraction_leaf monotonic_cst splitter"
        ),
        "ElasticNet": "alpha copy_X fit_intercept l1_ratio max_iter positive precompute selection tol warm_start",
        "ExtraTreesRegressor": (
            "bootstrap ccp_alpha criterion max_depth max_features max_leaf_nodes max_samples "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "monotonic_cst n_estimators oob_score verbose warm_start"
        ),
        "GammaRegressor": "alpha fit_intercept max_iter solver tol verbose warm_start",
        "GradientBoostingRegressor": (
            "alpha ccp_alpha criterion init learning_rate loss max_depth max_features max_leaf_nodes "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "n_estimators n_iter_no_change subsample tol validation_fraction verbose warm_start"
        ),
        "HistGradientBoostingRegressor": (
            "categorical_features early_stopping interaction_cst l2_regularization learning_rate loss "
            "max_bins max_depth max_features max_iter max_leaf_nodes min_samples_leaf monotonic_cst "
            "n_iter_no_change quantile scoring tol validation_fraction verbose warm_start"
        ),
        "HuberRegressor": "alpha epsilon fit_intercept max_iter tol warm_start",
        "KNeighborsRegressor": "algorithm leaf_size metric metric_params n_neighbors p weights",
        "KernelRidge": "alpha coef0 degree gamma kernel kernel_params",
        "Lars": "copy_X eps fit_intercept fit_path jitter n_nonzero_coefs precompute verbose",
        "Lasso": "alpha copy_X fit_intercept max_iter positive precompute selection tol warm_start",
        "LassoLars": "alpha copy_X eps fit_intercept fit_path jitter max_iter positive precompute verbose",
        "LinearRegression": "copy_X fit_intercept positive tol",
        "LinearSVR": "C dual epsilon fit_intercept intercept_scaling loss max_iter tol verbose",
        "MLPRegressor": (
            "activation alpha batch_size beta_1 beta_2 early_stopping epsilon hidden_layer_sizes "
            "learning_rate learning_rate_init loss max_fun max_iter momentum n_iter_no_change "
            "nesterovs_momentum power_t shuffle solver tol validation_fraction verbose warm_start"
        ),
        "NuSVR": "C cache_size coef0 degree gamma kernel max_iter nu shrinking tol verbose",
        "OrthogonalMatchingPursuit": "fit_intercept n_nonzero_coefs precompute tol",
        "PoissonRegressor": "alpha fit_intercept max_iter solver tol verbose warm_start",
        "QuantileRegressor": "alpha fit_intercept quantile solver solver_options",
        "RANSACRegressor": (
            "estimator is_data_valid is_model_valid loss max_skips max_trials min_samples "
            "residual_threshold stop_n_inliers stop_probability stop_score"
        ),
        "RandomForestRegressor": (
            "bootstrap ccp_alpha criterion max_depth max_features max_leaf_nodes max_samples "
            "min_impurity_decrease min_samples_leaf min_samples_split min_weight_fraction_leaf "
            "monotonic_cst n_estimators oob_score verbose warm_start"
        ),
        "Ridge": "alpha copy_X fit_intercept max_iter positive solver tol",
        "SGDRegressor": (
            "alpha average early_stopping epsilon eta0 fit_intercept l1_ratio learning_rate loss max_iter "
            "n_iter_no_change penalty power_t shuffle tol validation_fraction verbose warm_start"
        ),
        "SVR": "C cache_size coef0 degree epsilon gamma kernel max_iter shrinking tol verbose",
        "TheilSenRegressor": "fit_intercept max_iter max_subpopulation n_subsamples tol verbose",
        "TweedieRegressor": "alpha fit_intercept link max_iter power solver tol verbose warm_start",
    },
    "outliers": {
        "EllipticEnvelope": "assume_centered contamination store_precision support_fraction",
        "IsolationForest": "bootstrap contamination max_features max_samples n_estimators verbose warm_start",
        "LocalOutlierFactor": "algorithm contamination leaf_size metric metric_params n_neighbors p",
        "OneClassSVM": "cache_size coef0 degree gamma kernel max_iter nu shrinking tol verbose",
        "SGDOneClassSVM": (
            "average eta0 fit_intercept learning_rate max_iter nu power_t shuffle tol verbose warm_start"
        ),
    },
}
