"""What a model file may contain to be loaded without ``--trust``: lists of allowed names.

Layers, functions and operators in these lists compute on tensors and do nothing else: they open no
file and no connection, start no process, and take no function as data. Everything else is refused,
whether it is known to be harmful or not. Framework-free; the modules of the formats read the files.
"""

from __future__ import annotations

_CELLS = "GRUCell LSTMCell SimpleRNNCell StackedRNNCells GRUCellV1 GRUCellV2 LSTMCellV1 LSTMCellV2"

#: Classes that a Keras 2 or 3 configuration may name, by its ``class_name``. Not among them:
#: ``Lambda`` and the wrappers of RNN cells, which hold Python code; ``ClassMethod``,
#: ``InstanceMethod`` and ``InstanceProperty``, which call methods by name; lookups of strings,
#: which read a vocabulary from any path; layers that load models of other frameworks.
KERAS_CLASSES = frozenset(
    f"""
    Functional Sequential Model InputLayer Layer {_CELLS} Activation ActivityRegularization Add
    AdditiveAttention AlphaDropout Attention Average AdaptiveAveragePooling1D
    AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D
    AdaptiveMaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D
    AvgPool3D BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization
    Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D Conv2D Conv3D Conv1DTranspose
    Conv2DTranspose Conv3DTranspose Convolution1D Convolution2D Convolution3D Convolution1DTranspose
    Convolution2DTranspose Convolution3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D
    Cropping2D Cropping3D CuDNNGRU CuDNNLSTM Dense DepthwiseConv1D DepthwiseConv2D Discretization
    Dot Dropout ELU EinsumDense Embedding ReversibleEmbedding Flatten GRU GRUV1 GRUV2
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention GroupedQueryAttention HashedCrossing Hashing Identity
    LSTM LSTMV1 LSTMV2 LayerNormalization LayerScale LeakyReLU LocallyConnected1D LocallyConnected2D
    Masking MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
    MelSpectrogram MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization
    RNN ReLU RepeatVector Rescaling Reshape Resizing STFTSpectrogram SeparableConv1D SeparableConv2D
    SeparableConvolution1D SeparableConvolution2D SimpleRNN Softmax SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StochasticDepth Subtract ThresholdedReLU
    TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D
    ZeroPadding2D ZeroPadding3D AugMix AutoContrast ContrastLimitedAdaptiveHistogramEqualization
    CutMix Equalization MaxNumBoundingBoxes MixUp RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness
    RandomShear RandomTranslation RandomWidth RandomZoom Solarization

    __bytes__ __ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__ __tuple__ TensorShape
    DTypePolicy DTypePolicyMap FloatDTypePolicy Policy PolicyV1

    Constant CustomScaleLayer GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer
    LecunNormal LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT
    STFTInitializer TruncatedNormal VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer MaxNorm
    MinMaxNorm NonNeg RadialConstraint UnitNorm

    Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer Muon Nadam
    RMSprop SGD ScheduleFreeAdamW CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay
    PiecewiseConstantDecay PolynomialDecay BinaryCrossentropy BinaryFocalCrossentropy CTC
    CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy
    CategoricalHinge Circle CosineSimilarity Dice Hinge Huber KLDivergence LogCosh MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
    SparseCategoricalCrossentropy SquaredHinge Tversky AUC Accuracy BinaryAccuracy BinaryIoU
    CategoricalAccuracy F1Score FBetaScore FalseNegatives FalsePositives IoU LogCoshError Mean
    MeanIoU MeanRelativeError MeanTensor OneHotIoU OneHotMeanIoU Precision PrecisionAtRecall R2Score
    Recall RecallAtPrecision RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy
    SparseTopKCategoricalAccuracy SpecificityAtSensitivity Sum TopKCategoricalAccuracy TrueNegatives
    TruePositives
    """.split()
)

#: Names under which Keras 2 has registered a layer of its own.
KERAS_REGISTERED = frozenset(("Custom>CustomScaleLayer",))

#: Operations of ``keras.ops`` that a Keras 3 graph may hold as nodes. Not among them: those that
#: take a function, as ``Map`` and ``WhileLoop``.
KERAS_OPERATIONS = frozenset(
    """
    Cast ConvertToTensor SaturateCast Scatter ScatterUpdate Slice SliceUpdate StopGradient Unstack
    AffineTransform CropImages ElasticTransform ExtractPatches GaussianBlur HSVToRGB MapCoordinates
    PadImages PerspectiveTransform RGBToGrayscale RGBToHSV Resize SSIM ScaleAndTranslate SobelEdges
    Cholesky CholeskyInverse Det Eig Eigh Inv Lstsq LuFactor MatrixRank Norm Pinv Qr SVD Solve
    SolveTriangular CDist Erf Erfc Erfinv ExtractSequences FFT FFT2 IFFT2 IRFFT ISTFT InTopK Logdet
    Logsumexp RFFT Rsqrt STFT SegmentMax SegmentMin SegmentProd SegmentReduction SegmentSum TopK
    ViewAsComplex ViewAsReal AdaptiveAveragePool AdaptiveMaxPool AveragePool BatchNorm
    BinaryCrossentropy CategoricalCrossentropy Celu Conv ConvTranspose DepthToSpace DepthwiseConv
    DotProductAttention Elu Fold Gelu Glu HardShrink HardSigmoid HardSilu HardSwish HardTanh
    LayerNorm LeakyRelu LogSigmoid LogSoftmax MaxPool Moments MultiHot Normalize OneHot PSNR Polar
    RMSNorm Relu Relu6 Selu SeparableConv Sigmoid Silu SoftShrink Softmax Softplus Softsign
    SpaceToDepth SparseCategoricalCrossentropy SparsePlus SparseSigmoid Sparsemax Squareplus
    TanhShrink Threshold Unfold Abs Absolute Add All AllClose Amax Amin Angle Any Append Arange
    Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin Argpartition Argsort Array
    ArraySplit Average Bincount BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr
    BitwiseRightShift BitwiseXor BroadcastTo Cbrt Ceil Clip Concatenate Conj Conjugate Copy Corrcoef
    Correlate Cos Cosh CountNonzero Cross Cumprod Cumsum Deg2rad Diag Diagflat Diagonal Diff
    Digitize Divide DivideNoNan Dot Dsplit Dstack Einsum EmptyLike Equal Exp Exp2 ExpandDims Expm1
    Fabs Flip Fliplr Flipud Floor FloorDivide Fmax Fmin Fmod Full FullLike Gcd Geomspace GetItem
    Greater GreaterEqual Heaviside Histogram Hsplit Hstack Hypot I0 Imag Inner IsIn Isclose Isfinite
    Isinf Isnan Isneginf Isposinf Isreal Kron Lcm Ldexp LeftShift Less LessEqual Linspace Log Log10
    Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Matmul Max
    Maximum Mean Median Meshgrid Min Minimum Mod Moveaxis Multiply NanToNum Nanargmax Nanargmin
    Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod Nanquantile Nanstd
    Nansum Nanvar Ndim Negative Nextafter Nonzero NotEqual OnesLike Outer Pad Percentile Power Prod
    Ptp Quantile Rad2deg Ravel Real Reciprocal Repeat Reshape RightShift Roll Rot90 Round
    SearchSorted Select Sign Signbit Sin Sinc Sinh Size Slogdet Sort Split Sqrt Square Squeeze Stack
    Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Tile Trace Transpose Trapezoid
    Tril Triu TrueDivide Trunc Unique UnravelIndex Vander Var Vdot View Vsplit Vstack Where
    ZerosLike
    """.split()
)

#: Functions that a Keras configuration may name: activations, losses, metrics, initializers.
KERAS_FUNCTIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus
    softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
    binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_generalized_cross_entropy
    categorical_hinge circle cosine_similarity ctc dice hinge huber kl_divergence kld
    kullback_leibler_divergence log_cosh logcosh mae mape mean_absolute_error
    mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error mse msle
    poisson sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy squared_hinge top_k_categorical_accuracy tversky KLD MAE MAPE
    MSE MSLE l1 l1_l2 l2
    """.split()
)

#: Functions of TensorFlow that a layer of Keras 2 may be made of (``TFOpLambda``,
#: ``SlicingOpLambda``), by their public names without ``compat.v1.``. Not among them: those that
#: take a function, and all of ``io``, ``raw_ops``, ``debugging``, ``summary``, ``saved_model``.
TENSORFLOW_FUNCTIONS = frozenset(
    """
    abs acos acosh add add_n argmax argmin argsort asin asinh atan atan2 atanh batch_to_space
    batch_to_space_nd bitcast boolean_mask broadcast_to cast clip_by_global_norm clip_by_norm
    clip_by_value complex concat constant convert_to_tensor cos cosh cumprod cumsum depth_to_space
    div div_no_nan divide dynamic_partition dynamic_stitch einsum ensure_shape equal erf erfc exp
    expand_dims expm1 extract_image_patches extract_volume_patches eye fill floor floor_div
    floordiv floormod gather gather_nd greater greater_equal histogram_fixed_width identity
    identity_n is_finite is_inf is_nan less less_equal linspace lin_space log log1p log_sigmoid
    logical_and logical_not logical_or logical_xor lgamma matmul matrix_band_part matrix_diag
    matrix_diag_part matrix_set_diag matrix_transpose maximum meshgrid minimum mod multiply
    negative norm not_equal one_hot ones ones_like pad parallel_stack pow range rank realdiv real
    imag reciprocal reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min
    reduce_prod reduce_sum repeat reshape reverse reverse_sequence rint roll round rsqrt
    saturate_cast scalar_mul scatter_nd searchsorted sequence_mask shape shape_n sigmoid sign sin
    sinh size slice sort space_to_batch space_to_batch_nd space_to_depth split sqrt square
    squared_difference squeeze stack stop_gradient strided_slice subtract tan tanh
    tensor_scatter_nd_add tensor_scatter_nd_max tensor_scatter_nd_min tensor_scatter_nd_sub
    tensor_scatter_nd_update tensordot tile transpose truediv truncatediv truncatemod unique
    unique_with_counts unravel_index unstack where where_v2 zeros zeros_like __operators__.add
    __operators__.eq __operators__.getitem __operators__.ne __operators__.sub __operators__.mul
    __operators__.truediv __operators__.matmul bitwise.bitwise_and bitwise.bitwise_or
    bitwise.bitwise_xor bitwise.invert bitwise.left_shift bitwise.right_shift math.abs
    math.accumulate_n math.acos math.acosh math.add math.add_n math.angle math.argmax math.argmin
    math.asin math.asinh math.atan math.atan2 math.atanh math.bessel_i0 math.bessel_i0e
    math.bessel_i1 math.bessel_i1e math.betainc math.bincount math.ceil math.conj math.cos
    math.cosh math.count_nonzero math.cumprod math.cumsum math.cumulative_logsumexp math.digamma
    math.divide math.divide_no_nan math.equal math.erf math.erfc math.erfcinv math.erfinv math.exp
    math.expm1 math.floor math.floordiv math.floormod math.greater math.greater_equal math.igamma
    math.igammac math.imag math.in_top_k math.invert_permutation math.is_finite math.is_inf
    math.is_nan math.l2_normalize math.lbeta math.less math.less_equal math.lgamma math.log
    math.log1p math.log_sigmoid math.log_softmax math.logical_and math.logical_not math.logical_or
    math.logical_xor math.maximum math.minimum math.mod math.multiply math.multiply_no_nan
    math.ndtri math.negative math.nextafter math.not_equal math.polygamma math.polyval math.pow
    math.real math.reciprocal math.reciprocal_no_nan math.reduce_all math.reduce_any
    math.reduce_euclidean_norm math.reduce_logsumexp math.reduce_max math.reduce_mean
    math.reduce_min math.reduce_prod math.reduce_std math.reduce_sum math.reduce_variance math.rint
    math.round math.rsqrt math.scalar_mul math.segment_max math.segment_mean math.segment_min
    math.segment_prod math.segment_sum math.sigmoid math.sign math.sin math.sinh math.softmax
    math.softplus math.softsign math.sqrt math.square math.squared_difference math.subtract
    math.tan math.tanh math.top_k math.truediv math.unsorted_segment_max math.unsorted_segment_mean
    math.unsorted_segment_min math.unsorted_segment_prod math.unsorted_segment_sqrt_n
    math.unsorted_segment_sum math.xdivy math.xlog1py math.xlogy math.zero_fraction math.zeta
    nn.atrous_conv2d nn.atrous_conv2d_transpose nn.avg_pool nn.avg_pool1d nn.avg_pool2d
    nn.avg_pool3d nn.batch_norm_with_global_normalization nn.batch_normalization nn.bias_add
    nn.conv1d nn.conv1d_transpose nn.conv2d nn.conv2d_transpose nn.conv3d nn.conv3d_transpose
    nn.conv_transpose nn.convolution nn.crelu nn.depth_to_space nn.depthwise_conv2d nn.dilation2d
    nn.dropout nn.elu nn.embedding_lookup nn.erosion2d nn.fused_batch_norm nn.gelu nn.in_top_k
    nn.l2_loss nn.l2_normalize nn.leaky_relu nn.local_response_normalization nn.log_softmax nn.lrn
    nn.max_pool nn.max_pool1d nn.max_pool2d nn.max_pool3d nn.max_pool_with_argmax nn.moments
    nn.normalize_moments nn.pool nn.quantized_relu_x nn.relu nn.relu6 nn.relu_layer nn.selu
    nn.separable_conv2d nn.sigmoid nn.sigmoid_cross_entropy_with_logits nn.silu nn.softmax
    nn.softmax_cross_entropy_with_logits nn.softplus nn.softsign nn.space_to_batch
    nn.space_to_depth nn.sparse_softmax_cross_entropy_with_logits nn.swish nn.tanh nn.top_k
    nn.weighted_moments nn.xw_plus_b nn.zero_fraction linalg.adjoint linalg.band_part
    linalg.cholesky linalg.cholesky_solve linalg.cross linalg.det linalg.diag linalg.diag_part
    linalg.eigh linalg.eigvalsh linalg.einsum linalg.eye linalg.inv linalg.l2_normalize
    linalg.logdet linalg.lstsq linalg.lu linalg.matmul linalg.matrix_transpose linalg.matvec
    linalg.norm linalg.normalize linalg.pinv linalg.qr linalg.set_diag linalg.slogdet linalg.solve
    linalg.svd linalg.tensor_diag linalg.tensor_diag_part linalg.tensordot linalg.trace
    linalg.triangular_solve image.adjust_brightness image.adjust_contrast image.adjust_gamma
    image.adjust_hue image.adjust_saturation image.central_crop image.combined_non_max_suppression
    image.convert_image_dtype image.crop_and_resize image.crop_to_bounding_box
    image.extract_glimpse image.extract_image_patches image.extract_patches image.flip_left_right
    image.flip_up_down image.grayscale_to_rgb image.hsv_to_rgb image.image_gradients
    image.non_max_suppression image.non_max_suppression_overlaps image.non_max_suppression_padded
    image.non_max_suppression_with_scores image.pad_to_bounding_box image.per_image_standardization
    image.psnr image.resize image.resize_area image.resize_bicubic image.resize_bilinear
    image.resize_image_with_crop_or_pad image.resize_images image.resize_nearest_neighbor
    image.resize_with_crop_or_pad image.resize_with_pad image.rgb_to_grayscale image.rgb_to_hsv
    image.rgb_to_yiq image.rgb_to_yuv image.rot90 image.sobel_edges image.ssim
    image.ssim_multiscale image.total_variation image.transpose image.transpose_image
    image.yiq_to_rgb image.yuv_to_rgb signal.dct signal.fft signal.fft2d signal.fft3d
    signal.fftshift signal.frame signal.hamming_window signal.hann_window signal.idct signal.ifft
    signal.ifft2d signal.ifft3d signal.ifftshift signal.inverse_stft signal.irfft signal.irfft2d
    signal.irfft3d signal.kaiser_window signal.linear_to_mel_weight_matrix signal.mdct
    signal.mfccs_from_log_mel_spectrograms signal.overlap_and_add signal.rfft signal.rfft2d
    signal.rfft3d signal.stft signal.vorbis_window quantization.fake_quant_with_min_max_args
    quantization.fake_quant_with_min_max_vars quantization.fake_quant_with_min_max_vars_per_channel
    random.normal random.uniform random.truncated_normal random.stateless_normal
    random.stateless_uniform random_normal random_uniform keras.activations.elu
    keras.activations.exponential keras.activations.gelu keras.activations.hard_sigmoid
    keras.activations.linear keras.activations.mish keras.activations.relu keras.activations.selu
    keras.activations.sigmoid keras.activations.softmax keras.activations.softplus
    keras.activations.softsign keras.activations.swish keras.activations.tanh keras.backend.abs
    keras.backend.all keras.backend.any keras.backend.argmax keras.backend.argmin
    keras.backend.batch_dot keras.backend.batch_flatten keras.backend.batch_normalization
    keras.backend.bias_add keras.backend.cast keras.backend.clip keras.backend.concatenate
    keras.backend.conv1d keras.backend.conv2d keras.backend.conv2d_transpose keras.backend.conv3d
    keras.backend.cos keras.backend.cumprod keras.backend.cumsum keras.backend.depthwise_conv2d
    keras.backend.dot keras.backend.elu keras.backend.equal keras.backend.exp
    keras.backend.expand_dims keras.backend.flatten keras.backend.gather keras.backend.greater
    keras.backend.greater_equal keras.backend.hard_sigmoid keras.backend.l2_normalize
    keras.backend.less keras.backend.less_equal keras.backend.log keras.backend.max
    keras.backend.maximum keras.backend.mean keras.backend.min keras.backend.minimum
    keras.backend.not_equal keras.backend.one_hot keras.backend.ones_like
    keras.backend.permute_dimensions keras.backend.pool2d keras.backend.pool3d keras.backend.pow
    keras.backend.prod keras.backend.relu keras.backend.repeat keras.backend.repeat_elements
    keras.backend.reshape keras.backend.resize_images keras.backend.resize_volumes
    keras.backend.reverse keras.backend.round keras.backend.separable_conv2d keras.backend.shape
    keras.backend.sigmoid keras.backend.sign keras.backend.sin keras.backend.softmax
    keras.backend.softplus keras.backend.softsign keras.backend.spatial_2d_padding
    keras.backend.spatial_3d_padding keras.backend.sqrt keras.backend.square keras.backend.squeeze
    keras.backend.stack keras.backend.std keras.backend.stop_gradient keras.backend.sum
    keras.backend.tanh keras.backend.temporal_padding keras.backend.tile keras.backend.transpose
    keras.backend.var keras.backend.zeros_like
    """.split()
)

#: Operators of TensorFlow graphs that compute on tensors, variables and tables of the model.
TENSORFLOW_OPERATORS = frozenset(
    """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 AdjustContrastv2 AdjustHue AdjustSaturation All
    AllCandidateSampler Angle AnonymousHashTable AnonymousMutableDenseHashTable
    AnonymousMutableHashTable AnonymousMutableHashTableOfTensors Any ApplyAdaMax ApplyAdadelta
    ApplyAdagrad ApplyAdagradDA ApplyAdagradV2 ApplyAdam ApplyAddSign ApplyCenteredRMSProp ApplyFtrl
    ApplyFtrlV2 ApplyGradientDescent ApplyMomentum ApplyPowerSign ApplyProximalAdagrad
    ApplyProximalGradientDescent ApplyRMSProp ApproxTopK ApproximateEqual ArgMax ArgMin AsString
    Asin Asinh Assert Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp
    AssignVariableOp Atan Atan2 Atanh AudioSpectrogram AudioSummary AudioSummaryV2 AvgPool AvgPool3D
    AvgPool3DGrad AvgPoolGrad BandedTriangularSolve BatchCholesky BatchCholeskyGrad BatchFFT
    BatchFFT2D BatchFFT3D BatchIFFT BatchIFFT2D BatchIFFT3D BatchMatMul BatchMatMulV2 BatchMatMulV3
    BatchMatrixBandPart BatchMatrixDeterminant BatchMatrixDiag BatchMatrixDiagPart
    BatchMatrixInverse BatchMatrixSetDiag BatchMatrixSolve BatchMatrixSolveLs
    BatchMatrixTriangularSolve BatchNormWithGlobalNormalization BatchNormWithGlobalNormalizationGrad
    BatchSelfAdjointEig BatchSelfAdjointEigV2 BatchSvd BatchToSpace BatchToSpaceND BesselI0
    BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0
    BesselY1 Betainc BiasAdd BiasAddGrad BiasAddV1 Bincount Bitcast BitwiseAnd BitwiseOr BitwiseXor
    BlockLSTM BlockLSTMGrad BlockLSTMGradV2 BlockLSTMV2 BroadcastArgs BroadcastGradientArgs
    BroadcastTo Bucketize CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 Case Cast Ceil
    CheckNumerics CheckNumericsV2 Cholesky CholeskyGrad ClipByValue CombinedNonMaxSuppression
    Complex ComplexAbs ComputeAccidentalHits Concat ConcatOffset ConcatV2 Conj ConjugateTranspose
    Const ControlTrigger Conv Conv2D Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv2DBackpropInput
    Conv2DBackpropInputV2 Conv3D Conv3DBackpropFilterV2 Conv3DBackpropInputV2 Cos Cosh CropAndResize
    CropAndResizeGradBoxes CropAndResizeGradImage Cross CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2
    CudnnRNNBackpropV3 CudnnRNNCanonicalToParams CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize
    CudnnRNNParamsToCanonical CudnnRNNParamsToCanonicalV2 CudnnRNNV2 CudnnRNNV3 Cumprod Cumsum
    CumulativeLogsumexp DataFormatDimMap DataFormatVecPermute Dawsn DecodeAndCropJpeg DecodeBase64
    DecodeBmp DecodeCSV DecodeCompressed DecodeGif DecodeImage DecodeJSONExample DecodeJpeg
    DecodeJxl DecodePaddedRaw DecodePng DecodeRaw DecodeWav DecodeWebP DeepCopy DenseBincount
    DenseToCSRSparseMatrix DenseToDenseSetOperation DenseToSparseSetOperation DepthToSpace
    DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput
    Dequantize DeserializeManySparse DeserializeSparse DestroyResourceOp DestroyTemporaryVariable
    DeviceIndex Diag DiagPart Digamma Dilation2D Dilation2DBackpropFilter Dilation2DBackpropInput
    DisableCopyOnRead Div DivNoNan DrawBoundingBoxes DrawBoundingBoxesV2 DynamicPartition
    DynamicStitch EditDistance Einsum Elu EluGrad Empty EmptyTensorList EmptyTensorMap EncodeBase64
    EncodeJpeg EncodeJpegVariableQuality EncodePng EnsureShape Enter Equal Erf Erfc Erfinv
    EuclideanNorm Exit Exp ExpandDims Expint Expm1 ExtractGlimpse ExtractGlimpseV2
    ExtractImagePatches ExtractJpegShape ExtractVolumePatches FFT FFT2D FFT3D FFTND FakeParam
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxArgsGradient FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsGradient FakeQuantWithMinMaxVarsPerChannel
    FakeQuantWithMinMaxVarsPerChannelGradient Fill Fingerprint Floor FloorDiv FloorMod
    FractionalAvgPool FractionalAvgPoolGrad FractionalMaxPool FractionalMaxPoolGrad FresnelCos
    FresnelSin FusedBatchNorm FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3
    FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell
    GRUBlockCellGrad Gather GatherNd GatherV2 GenerateBoundingBoxProposals Greater GreaterEqual
    GuaranteeConst HSVToRGB HashTable HashTableV2 HistogramFixedWidth HistogramSummary IFFT IFFT2D
    IFFT3D IFFTND IRFFT IRFFT2D IRFFT3D IRFFTND Identity IdentityN If Igamma Igammac Imag
    ImageProjectiveTransformV2 ImageProjectiveTransformV3 ImageSummary InTopK InTopKV2
    InitializeTable InitializeTableV2 InplaceAdd InplaceSub InplaceUpdate Inv InvGrad Invert
    InvertPermutation IsFinite IsInf IsNan IsResourceHandleRefCounting IsVariableInitialized
    IsotonicRegression KmeansPlusPlusInitialization KthOrderStatistic L2Loss LRN LRNGrad
    LSTMBlockCell LSTMBlockCellGrad LeakyRelu LeakyReluGrad LearnedUnigramCandidateSampler LeftShift
    Less LessEqual Lgamma LinSpace ListDiff Log Log1p LogMatrixDeterminant LogSoftmax
    LogUniformCandidateSampler LogicalAnd LogicalNot LogicalOr LookupTableExport LookupTableExportV2
    LookupTableFind LookupTableFindV2 LookupTableImport LookupTableImportV2 LookupTableInsert
    LookupTableInsertV2 LookupTableRemoveV2 LookupTableSize LookupTableSizeV2 LoopCond LowerBound Lu
    MakeUnique MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2
    MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixExponential MatrixInverse MatrixLogarithm
    MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MatrixSolve MatrixSolveLs MatrixSquareRoot
    MatrixTriangularSolve Max MaxPool MaxPool3D MaxPool3DGrad MaxPool3DGradGrad MaxPoolGrad
    MaxPoolGradGrad MaxPoolGradGradV2 MaxPoolGradV2 MaxPoolGradWithArgmax MaxPoolV2
    MaxPoolWithArgmax Maximum Mean Merge MergeSummary Mfcc Min Minimum MirrorPad MirrorPadGrad Mod
    Mul MulNoNan Multinomial MutableDenseHashTable MutableDenseHashTableV2 MutableHashTable
    MutableHashTableOfTensors MutableHashTableOfTensorsV2 MutableHashTableV2 Ndtri NearestNeighbors
    Neg NextAfter NextIteration NoOp NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps NotEqual NthElement OneHot
    OnesLike OptionalFromValue OptionalGetValue OptionalHasValue OptionalNone Pack Pad PadV2
    ParallelConcat ParallelDynamicStitch ParameterizedTruncatedNormal ParseExample ParseExampleV2
    ParseSequenceExample ParseSequenceExampleV2 ParseSingleExample ParseSingleSequenceExample
    ParseTensor PartitionedCall Placeholder PlaceholderV2 PlaceholderWithDefault Polygamma
    PopulationCount Pow PreventGradient Prod Qr QuantizeAndDequantize QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeAndDequantizeV4Grad
    QuantizeDownAndShrinkRange QuantizeV2 QuantizedAdd QuantizedAvgPool
    QuantizedBatchNormWithGlobalNormalization QuantizedBiasAdd QuantizedConcat QuantizedConcatV2
    QuantizedConv2D QuantizedConv2DAndRelu QuantizedConv2DAndReluAndRequantize
    QuantizedConv2DAndRequantize QuantizedConv2DPerChannel QuantizedConv2DWithBias
    QuantizedConv2DWithBiasAndRelu QuantizedConv2DWithBiasAndReluAndRequantize
    QuantizedConv2DWithBiasAndRequantize QuantizedConv2DWithBiasSignedSumAndReluAndRequantize
    QuantizedConv2DWithBiasSumAndRelu QuantizedConv2DWithBiasSumAndReluAndRequantize
    QuantizedDepthwiseConv2D QuantizedDepthwiseConv2DWithBias
    QuantizedDepthwiseConv2DWithBiasAndRelu QuantizedDepthwiseConv2DWithBiasAndReluAndRequantize
    QuantizedInstanceNorm QuantizedMatMul QuantizedMatMulWithBias
    QuantizedMatMulWithBiasAndDequantize QuantizedMatMulWithBiasAndRelu
    QuantizedMatMulWithBiasAndReluAndRequantize QuantizedMatMulWithBiasAndRequantize
    QuantizedMaxPool QuantizedMul QuantizedRelu QuantizedRelu6 QuantizedReluX QuantizedReshape
    QuantizedResizeBilinear RFFT RFFT2D RFFT3D RFFTND RGBToHSV RaggedBincount
    RaggedCountSparseOutput RaggedCross RaggedFillEmptyRows RaggedFillEmptyRowsGrad RaggedGather
    RaggedRange RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor
    RaggedTensorToVariant RaggedTensorToVariantGradient RandomCrop RandomGamma RandomGammaGrad
    RandomIndexShuffle RandomPoisson RandomPoissonV2 RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt Range Rank ReadVariableOp Real RealDiv Reciprocal ReciprocalGrad
    ReduceJoin RefEnter RefExit RefIdentity RefMerge RefNextIteration RefSwitch RegexFullMatch
    RegexReplace Relu Relu6 Relu6Grad ReluGrad RequantizationRange RequantizationRangePerChannel
    Requantize RequantizePerChannel Reshape ResizeArea ResizeBicubic ResizeBicubicGrad
    ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor ResizeNearestNeighborGrad
    ResourceApplyAdaMax ResourceApplyAdadelta ResourceApplyAdagrad ResourceApplyAdagradDA
    ResourceApplyAdagradV2 ResourceApplyAdam ResourceApplyAdamWithAmsgrad ResourceApplyAddSign
    ResourceApplyCenteredRMSProp ResourceApplyFtrl ResourceApplyFtrlV2 ResourceApplyGradientDescent
    ResourceApplyKerasMomentum ResourceApplyMomentum ResourceApplyPowerSign
    ResourceApplyProximalAdagrad ResourceApplyProximalGradientDescent ResourceApplyRMSProp
    ResourceCountUpTo ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv
    ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd
    ResourceScatterNdMax ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate
    ResourceScatterSub ResourceScatterUpdate ResourceSparseApplyAdadelta ResourceSparseApplyAdagrad
    ResourceSparseApplyAdagradDA ResourceSparseApplyAdagradV2 ResourceSparseApplyCenteredRMSProp
    ResourceSparseApplyFtrl ResourceSparseApplyFtrlV2 ResourceSparseApplyKerasMomentum
    ResourceSparseApplyMomentum ResourceSparseApplyProximalAdagrad
    ResourceSparseApplyProximalGradientDescent ResourceSparseApplyRMSProp ResourceStridedSliceAssign
    Reverse ReverseSequence ReverseV2 RightShift Rint RngReadAndSkip RngSkip Roll Round Rsqrt
    RsqrtGrad SampleDistortedBoundingBox SampleDistortedBoundingBoxV2 ScalarSummary
    ScaleAndTranslate ScaleAndTranslateGrad ScatterAdd ScatterDiv ScatterMax ScatterMin ScatterMul
    ScatterNd ScatterNdAdd ScatterNdMax ScatterNdMin ScatterNdNonAliasingAdd ScatterNdSub
    ScatterNdUpdate ScatterSub ScatterUpdate SegmentMax SegmentMaxV2 SegmentMean SegmentMin
    SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum SegmentSumV2 Select SelectV2 SelfAdjointEig
    SelfAdjointEigV2 Selu SeluGrad SerializeManySparse SerializeSparse SetSize Shape ShapeN Sigmoid
    SigmoidGrad Sign Sin Sinh Size Slice Snapshot Softmax SoftmaxCrossEntropyWithLogits Softplus
    SoftplusGrad Softsign SoftsignGrad SpaceToBatch SpaceToBatchND SpaceToDepth SparseAdd
    SparseAddGrad SparseApplyAdadelta SparseApplyAdagrad SparseApplyAdagradDA SparseApplyAdagradV2
    SparseApplyCenteredRMSProp SparseApplyFtrl SparseApplyFtrlV2 SparseApplyMomentum
    SparseApplyProximalAdagrad SparseApplyProximalGradientDescent SparseApplyRMSProp SparseBincount
    SparseConcat SparseCountSparseOutput SparseCross SparseCrossHashed SparseCrossV2
    SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows
    SparseFillEmptyRowsGrad SparseMatMul SparseMatrixAdd SparseMatrixMatMul SparseMatrixMul
    SparseMatrixNNZ SparseMatrixOrderingAMD SparseMatrixSoftmax SparseMatrixSoftmaxGrad
    SparseMatrixSparseCholesky SparseMatrixSparseMatMul SparseMatrixTranspose SparseMatrixZeros
    SparseReduceMax SparseReduceMaxSparse SparseReduceSum SparseReduceSumSparse SparseReorder
    SparseReshape SparseSegmentMean SparseSegmentMeanGrad SparseSegmentMeanGradV2
    SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNGrad
    SparseSegmentSqrtNGradV2 SparseSegmentSqrtNWithNumSegments SparseSegmentSum SparseSegmentSumGrad
    SparseSegmentSumGradV2 SparseSegmentSumWithNumSegments SparseSlice SparseSliceGrad SparseSoftmax
    SparseSoftmaxCrossEntropyWithLogits SparseSparseMaximum SparseSparseMinimum SparseSplit
    SparseTensorDenseAdd SparseTensorDenseMatMul SparseTensorToCSRSparseMatrix SparseToDense
    SparseToSparseSetOperation Spence Split SplitV Sqrt SqrtGrad Square SquaredDifference Squeeze
    Stack StackClose StackCloseV2 StackPop StackPopV2 StackPush StackPushV2 StackV2
    StatefulPartitionedCall StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2
    StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt StatelessCase
    StatelessIf StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
    StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2
    StatelessRandomPoisson StatelessRandomUniform StatelessRandomUniformFullInt
    StatelessRandomUniformFullIntV2 StatelessRandomUniformInt StatelessRandomUniformIntV2
    StatelessRandomUniformV2 StatelessSampleDistortedBoundingBox StatelessShuffle
    StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessWhile StaticRegexFullMatch
    StaticRegexReplace StopGradient StridedSlice StridedSliceAssign StridedSliceGrad StringFormat
    StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip
    StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper
    Sub Substr Sum Svd Switch SymbolicGradient Tan Tanh TanhGrad TemporaryVariable TensorArray
    TensorArrayClose TensorArrayCloseV2 TensorArrayCloseV3 TensorArrayConcat TensorArrayConcatV2
    TensorArrayConcatV3 TensorArrayGather TensorArrayGatherV2 TensorArrayGatherV3 TensorArrayGrad
    TensorArrayGradV2 TensorArrayGradV3 TensorArrayPack TensorArrayRead TensorArrayReadV2
    TensorArrayReadV3 TensorArrayScatter TensorArrayScatterV2 TensorArrayScatterV3 TensorArraySize
    TensorArraySizeV2 TensorArraySizeV3 TensorArraySplit TensorArraySplitV2 TensorArraySplitV3
    TensorArrayUnpack TensorArrayV2 TensorArrayV3 TensorArrayWrite TensorArrayWriteV2
    TensorArrayWriteV3 TensorListConcat TensorListConcatLists TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListPushBackBatch TensorListReserve TensorListResize
    TensorListScatter TensorListScatterIntoExistingList TensorListScatterV2 TensorListSetItem
    TensorListSplit TensorListStack TensorMapErase TensorMapHasKey TensorMapInsert TensorMapLookup
    TensorMapSize TensorMapStackKeys TensorScatterAdd TensorScatterMax TensorScatterMin
    TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate TensorSummary TensorSummaryV2
    ThreadUnsafeUnigramCandidateSampler Tile TileGrad ToBool TopK TopKUnique TopKV2 TopKWithUnique
    Transpose TridiagonalMatMul TridiagonalSolve TruncateDiv TruncateMod TruncatedNormal
    UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode
    UniformCandidateSampler UniformDequantize UniformQuantize UniformQuantizedAdd
    UniformQuantizedClipByValue UniformQuantizedConvolution UniformQuantizedConvolutionHybrid
    UniformQuantizedDot UniformQuantizedDotHybrid UniformRequantize Unique UniqueV2 UniqueWithCounts
    UniqueWithCountsV2 Unpack UnravelIndex UnsortedSegmentJoin UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd UnsortedSegmentSum UpperBound VarHandleOp VarIsInitializedOp Variable
    VariableShape VariableV2 Where While Xdivy Xlog1py Xlogy ZerosLike Zeta _Arg _DeviceArg
    _DeviceRetval _Retval
    """.split()
)

#: Operators of TensorFlow that read the variables' files, as loading a SavedModel does.
TENSORFLOW_RESTORING = frozenset("RestoreV2 Restore RestoreSlice".split())
#: Operators with which every SavedModel is able to write its variables again. They may stand in a
#: file, but not where loading or serving runs them.
TENSORFLOW_SAVING = TENSORFLOW_RESTORING | frozenset(
    "MergeV2Checkpoints Save SaveSlices SaveV2 ShardedFilename ShardedFilespec".split()
)

#: Operators of onnxruntime's own domain ``com.microsoft`` that compute on tensors. Not among them:
#: ``EPContext``, which loads a binary from a path, and what generates text by graphs in a node.
ONNX_MICROSOFT = frozenset(
    """
    Attention BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu BitmaskBiasDropout
    BitmaskDropout CDist ComplexMul ComplexMulConj ConvTransposeWithDynamicPads CropAndResize
    DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DequantizeBFP
    DequantizeLinear DequantizeWithOrder DynamicQuantizeLSTM DynamicQuantizeMatMul
    EmbedLayerNormalization ExpandDims FastGelu FusedConv FusedGemm FusedMatMul
    FusedMatMulActivation GatedAdd GatedRelativePositionBias GatherBlockQuantized GatherND Gelu
    GemmFastGelu GemmFloat8 GemmaRotaryEmbedding GridSample GroupNorm GroupQueryAttention Inverse
    Irfft IsAllFinite LongformerAttention MatMulBnb4 MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat
    MatMulNBits MaxpoolWithMask MoE MulInteger MultiHeadAttention MurmurHash3 NGramRepeatBlock
    NhwcConv NhwcFusedConv NhwcMaxPool PackedAttention PackedMultiHeadAttention Pad QAttention
    QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid
    QLinearSoftmax QLinearWhere QMoE QOrderedAttention QOrderedGelu QOrderedLayerNormalization
    QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeLinear QuantizeWithOrder
    QuickGelu Range ReduceSumInteger RelativePositionBias RemovePadding RestorePadding Rfft
    RotaryEmbedding SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization
    SparseAttention SparseToDenseMatMul TorchEmbedding TransposeMatMul Trilu UnfoldTensor Unique
    WordConvEmbedding
    """.split()
)

#: Built-in operators of TFLite. Not among them: ``CUSTOM``, ``DELEGATE`` and
#: ``STABLEHLO_CUSTOM_CALL``, which mean code that is not TFLite's.
TFLITE_OPERATORS = frozenset(
    """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE ATAN2 AVERAGE_POOL_2D BATCH_MATMUL
    BATCH_TO_SPACE_ND BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN BITCAST BITWISE_XOR
    BROADCAST_ARGS BROADCAST_TO BUCKETIZE CALL CALL_ONCE CAST CEIL COMPLEX_ABS CONCATENATION
    CONCAT_EMBEDDINGS CONV_2D CONV_3D CONV_3D_TRANSPOSE COS CUMSUM DENSIFY DEPTHWISE_CONV_2D
    DEPTH_TO_SPACE DEQUANTIZE DILATE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP
    EMBEDDING_LOOKUP_SPARSE EQUAL EXP EXPAND_DIMS FAKE_QUANT FILL FLOOR FLOOR_DIV FLOOR_MOD
    FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH HASHTABLE HASHTABLE_FIND
    HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE IF IMAG L2_NORMALIZATION L2_POOL_2D LEAKY_RELU
    LESS LESS_EQUAL LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC
    LOG_SOFTMAX LSH_PROJECTION LSTM MATRIX_DIAG MATRIX_SET_DIAG MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL MULTINOMIAL NEG NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 NOT_EQUAL ONE_HOT
    PACK PAD PADV2 POW PRELU QUANTIZE RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANGE RANK READ_VARIABLE
    REAL REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_WINDOW RELU RELU6
    RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_SEQUENCE
    REVERSE_V2 RFFT2D RIGHT_SHIFT RNN ROUND RSQRT SCATTER_ND SEGMENT_SUM SELECT SELECT_V2 SHAPE SIGN
    SIN SKIP_GRAM SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPARSE_TO_DENSE SPLIT SPLIT_V SQRT
    SQUARE SQUARED_DIFFERENCE SQUEEZE STABLEHLO_ABS STABLEHLO_ADD STABLEHLO_AND
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CASE STABLEHLO_CBRT STABLEHLO_CLAMP STABLEHLO_COMPARE
    STABLEHLO_COMPOSITE STABLEHLO_CONCATENATE STABLEHLO_CONVERT STABLEHLO_CONVOLUTION
    STABLEHLO_COSINE STABLEHLO_DIVIDE STABLEHLO_DOT_GENERAL STABLEHLO_DYNAMIC_SLICE
    STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_GATHER
    STABLEHLO_IOTA STABLEHLO_LOG STABLEHLO_LOGISTIC STABLEHLO_MAXIMUM STABLEHLO_MINIMUM
    STABLEHLO_MULTIPLY STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_PAD STABLEHLO_POWER STABLEHLO_REDUCE
    STABLEHLO_REDUCE_WINDOW STABLEHLO_REMAINDER STABLEHLO_RESHAPE STABLEHLO_RNG_BIT_GENERATOR
    STABLEHLO_RSQRT STABLEHLO_SCATTER STABLEHLO_SELECT STABLEHLO_SHIFT_LEFT STABLEHLO_SLICE
    STABLEHLO_SORT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_TRANSPOSE STABLEHLO_WHILE
    STRIDED_SLICE SUB SUM SVDF TANH TILE TOPK_V2 TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN UNIQUE UNPACK UNSORTED_SEGMENT_MAX
    UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE WHERE WHILE
    ZEROS_LIKE
    """.split()
)

#: Custom operators that LiteRT itself brings, by their code.
TFLITE_CUSTOM = frozenset("AudioSpectrogram Mfcc TFLite_Detection_PostProcess".split())

#: Session entries and provider options of onnxruntime that a manifest may set. Others of them load
#: libraries and write files.
RUNTIME_OPTIONS = frozenset(
    "session.x64quantprecision session.qdqisint8allowed session.disable_quant_qdq prefer_nhwc "
    "use_tf32".split()
)
