plugins {
    id("com.android.application")
}

android {
    namespace = "org.cupola.app"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.example.@NAME@" // yours
        minSdk = 29 // Android 10, which the model's libraries are made for
        targetSdk = 35
        versionCode = 1
        versionName = "@VERSION@"
        ndk {
            abiFilters += listOf(@ABIS@)
        }
    }

    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    androidResources {
        noCompress += "safetensors" // quantized weights hardly become smaller
    }
}

dependencies {
    // Hugging Face's tokenizers, by Amazon's DJL (Apache-2.0): the artifact's tokenizer.json is theirs.
    implementation("ai.djl.huggingface:tokenizers:0.33.0")
    runtimeOnly("ai.djl.android:tokenizer-native:0.33.0")
}
